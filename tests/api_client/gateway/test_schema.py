"""schemathesis reads the OpenAPI page, asks everything it allows and forbids, and finds nothing."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from api_client.gateway.app import build
from api_client.gateway.settings import GatewaySettings
from api_client.testing import FakeAsyncClient

EXAMPLES = 10
TOKEN = "a-token-of-some-length"
APP = build(
    FakeAsyncClient(),
    GatewaySettings.read(redis_url="redis://127.0.0.1:1/0", gateway_tokens=[TOKEN]),
)
# 422 says that a request is not as the page says; 400, 404 and 413 that it cannot be served.
SERVED_OR_NOT = ["2xx", "400", "404", "413"]
CONFIG = schemathesis.Config.from_dict(
    {"checks": {"positive_data_acceptance": {"expected-statuses": SERVED_OR_NOT}}}
)
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP, config=CONFIG)
OPERATIONS = [found.ok() for found in SCHEMA.get_all_operations()]


def ask(operation, mode, *, without=()):
    @given(operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    def asked(case):
        case.call_and_validate(
            headers={"Authorization": f"Bearer {TOKEN}"}, excluded_checks=list(without)
        )

    asked()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.label)
def test_what_the_page_allows_is_understood(operation):
    ask(operation, schemathesis.GenerationMode.POSITIVE)


@pytest.mark.parametrize(
    "operation",
    [one for one in OPERATIONS if list(one.iter_parameters()) or one.body],
    ids=lambda one: one.label,
)
def test_what_the_page_forbids_is_refused(operation):
    # In a form everything is text, and a file may hold anything.
    uploads = any(body.media_type == "multipart/form-data" for body in operation.body)
    without = [schemathesis.checks.negative_data_rejection] if uploads else []
    ask(operation, schemathesis.GenerationMode.NEGATIVE, without=without)
