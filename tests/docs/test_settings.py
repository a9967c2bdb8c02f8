"""The page about the settings names every one of them, with its default and its older names."""

from pathlib import Path

import pytest

from api_client.dashboard.settings import DashboardSettings
from api_client.stack.settings import StackSettings
from api_client.wire.messages import Knobs
from api_client.wire.settings import Settings, names_of
from worker.settings import WorkerSettings

PAGE = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
FIELDS = {
    name: info
    for kind in (DashboardSettings, StackSettings, WorkerSettings, Settings)
    for name, info in kind.model_fields.items()
}


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_a_setting_is_documented_with_its_default_and_its_older_names(field):
    name, *older = (name.upper() for name in names_of(field))
    [row] = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |")]
    default = FIELDS[field].default
    if default in (None, (), {}):
        assert "| none |" in row
    elif FIELDS[field].default_factory is None:
        plain = str(default).lower() if isinstance(default, bool) else default
        assert f"| `{plain:g}` |" in row if isinstance(plain, float) else f"| `{plain}` |" in row
    assert all(f"`{also}`" in row for also in older)


@pytest.mark.parametrize("knob", sorted(Knobs.model_fields))
def test_what_can_be_changed_at_run_time_is_a_setting(knob):
    assert knob in WorkerSettings.model_fields
