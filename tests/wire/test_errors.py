import inspect
import pickle

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


def test_the_drawn_tree_says_which_may_be_asked_again():
    drawn = errors.__doc__.partition("\n\nThey carry")[0].split("── ")
    told = {line.split()[0] for line in drawn if "retryable" in line}
    assert told == {kind.__name__ for kind in KINDS if kind.retryable}


def test_a_code_from_the_future_is_still_an_error_of_ours():
    told = Failure(code="tomorrow", message="why", retryable=True)
    arrived = pickle.loads(pickle.dumps(told.error()))
    assert type(arrived) is errors.ClipyardError
    assert Failure.of(arrived) == told
    assert Failure.of(errors.ClipyardError("why")) == Failure(code="error", message="why")
