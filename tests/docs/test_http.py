"""The page about the gateway names every path and every setting."""

from pathlib import Path

import pytest

from api_client.gateway.app import build
from api_client.gateway.passes import Unit
from api_client.gateway.refusals import TABLE
from api_client.gateway.settings import GatewaySettings
from api_client.testing import FakeAsyncClient
from api_client.wire.logs import LogSettings

PAGE = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
APP = build(FakeAsyncClient(), GatewaySettings.read(redis_url="redis://127.0.0.1:1/0"))


@pytest.mark.parametrize(
    "path",
    [
        f"`{method.upper()} {path}`"
        for path, operations in APP.openapi()["paths"].items()
        for method in operations
    ],
)
def test_a_path_is_documented(path):
    assert path in PAGE


@pytest.mark.parametrize("kind", TABLE, ids=lambda kind: kind.code)
def test_an_error_is_documented_with_its_status(kind):
    [row] = [
        line for line in PAGE.splitlines() if line.startswith("| ") and f"`{kind.code}`" in line
    ]
    assert str(TABLE[kind].status) in row.split(" | ")[0]


@pytest.mark.parametrize(
    "field", sorted(GatewaySettings.model_fields.keys() - LogSettings.model_fields.keys())
)
def test_a_setting_is_documented_with_its_default(field):
    default = GatewaySettings.model_fields[field].default
    told = (
        "none"
        if default == ()
        else f"`{default:g}`"
        if isinstance(default, float)
        else f"`{default}`"
    )
    assert f"| `CLIPYARD_{field.upper()}` | {told} |" in PAGE


def test_the_tokens_of_the_page_can_be_copied_with_their_limits():
    _, section = PAGE.split("\n## Limits of a token\n")
    lines = [line for line in section.splitlines() if line.startswith("    ")]
    tokens = "\n".join(lines).replace("...", "0" * 16)
    free, limited = GatewaySettings.read(gateway_tokens=tokens).passes()
    assert free.limits == {}
    assert limited.limits == {Unit.REQUESTS: 600, Unit.ITEMS: 20000}
