import pytest

from api_client.dashboard import child
from api_client.dashboard.settings import DashboardSettings
from api_client.wire.errors import BadSettings


def test_a_password_is_made_and_shown_once_unless_there_is_one(monkeypatch):
    monkeypatch.delenv("CLIPYARD_DASHBOARD_PASSWORD", raising=False)
    one, another = child.extra(), child.extra()
    made = one.env["CLIPYARD_DASHBOARD_PASSWORD"]
    assert made in one.address
    assert made not in another.address
    monkeypatch.setenv("CLIPYARD_DASHBOARD_PASSWORD", "configured-by-somebody")
    assert child.extra().env == {}
    assert "configured" not in child.extra().address
    monkeypatch.setenv("CLIPYARD_DASHBOARD_HOST", "::1")
    assert child.extra().address == "http://[::1]:5555/models"


@pytest.mark.parametrize("password", [None, "short"])
def test_without_a_password_worth_its_name_nothing_listens(password):
    with pytest.raises(BadSettings, match="CLIPYARD_DASHBOARD_PASSWORD"):
        DashboardSettings.read(dashboard_password=password).guarded()


def test_it_listens_on_loopback_unless_told_otherwise():
    assert DashboardSettings.read().dashboard_host == "127.0.0.1"
