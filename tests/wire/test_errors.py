import inspect

import pytest

from api_client.wire import errors
from api_client.wire.messages import Failure

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.ClipyardError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_crosses_the_wire_as_itself(kind):
    arrived = Failure.model_validate_json(Failure.of(kind("why")).model_dump_json()).error()
    assert type(arrived) is kind
    assert str(arrived) == "why"


def test_codes_are_unique():
    assert len({kind.code for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_stands_in_the_drawn_tree(kind):
    assert f" {kind.__name__} " in errors.__doc__.replace("\n", " ")


def test_a_code_from_the_future_is_still_an_error_of_ours():
    assert type(errors.from_wire("tomorrow", "why")) is errors.ClipyardError
