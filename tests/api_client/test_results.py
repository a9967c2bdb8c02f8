import json
import pickle

import numpy as np
import pytest

from api_client.results import ItemsFailed, comparable, items_of, matrix, same_space, similarity
from api_client.wire.errors import BY_CODE, ImageMissing, SpaceMismatch
from api_client.wire.messages import Embedded, Failure

ROWS = np.eye(2, dtype=np.float32)
ANSWER = Embedded(
    model="a/b",
    dimension=2,
    fingerprint="f",
    items=3,
    failures={1: Failure.of(ImageMissing("no file /x"))},
    truncated=(2,),
    device="cuda:0",
    precision="float16",
    chosen="it is loaded",
)


def test_neighbours_of_a_failed_item_keep_their_rows():
    items = items_of(ANSWER, ROWS)
    assert np.array_equal(items[0].vector, ROWS[0])
    assert items[1].vector is None
    assert isinstance(items[1].error, FileNotFoundError)
    assert np.array_equal(items[2].vector, ROWS[1])
    assert [item.truncated for item in items] == [False, False, True]


def test_each_item_tells_who_computed_it_and_why():
    for item in items_of(ANSWER, ROWS):
        assert (item.model, item.fingerprint) == ("a/b", "f")
        assert (item.device, item.precision, item.chosen) == ("cuda:0", "float16", "it is loaded")


def test_who_keeps_an_item_keeps_no_others_with_it():
    first, _, third = items_of(ANSWER, ROWS)
    assert not any(np.shares_memory(one.vector, ROWS) for one in (first, third))


def test_items_can_be_looked_for_among_others():
    items, others = items_of(ANSWER, ROWS), items_of(ANSWER, ROWS)
    assert items[2] in items
    assert items[2] not in others
    assert len({*items, *others}) == 6


def test_a_matrix_is_refused_while_an_item_failed_but_the_items_are_kept():
    items = items_of(ANSWER, ROWS)
    with pytest.raises(ItemsFailed, match="1 of 3 items failed, the first at 1: no file /x") as e:
        matrix(items)
    assert list(e.value.items) == items
    assert np.array_equal(matrix([items[2], items[0]]), ROWS[::-1])


def test_items_of_two_spaces_cannot_be_compared_though_their_dimensions_are_alike():
    items = [items_of(ANSWER.model_copy(update={"fingerprint": f}), ROWS)[0] for f in "ffg"]
    assert np.array_equal(comparable(items[:2]), ROWS[[0, 0]])
    with pytest.raises(SpaceMismatch, match="two vector spaces"):
        comparable(items)


@pytest.mark.parametrize(
    "error", [*(kind("why") for kind in BY_CODE.values()), ItemsFailed(items_of(ANSWER, ROWS))]
)
def test_an_error_comes_back_whole_from_another_process(error):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))
    if isinstance(error, ItemsFailed):
        assert [str(item.error) for item in again.items] == ["None", "no file /x", "None"]


def test_two_spaces_in_one_call_are_refused():
    first = same_space(same_space(None, "f"), "f")
    with pytest.raises(SpaceMismatch, match="two vector spaces"):
        same_space(first, "g")


@pytest.mark.parametrize(
    ("a", "b", "shape"), [((3,), (3,), ()), ((3,), (2, 3), (2,)), ((4, 3), (2, 3), (4, 2))]
)
def test_similarity_keeps_the_axes_it_was_given(a, b, shape):
    assert similarity(np.ones(a, np.float32), np.ones(b, np.float32)).shape == shape


def test_the_similarity_of_two_vectors_is_a_number_that_goes_wherever_numbers_go():
    number = similarity(np.array([1.0, 0]), np.array([3.0, 4]))
    assert round(number, 3) == 0.6
    assert json.loads(json.dumps({"similarity": number})) == {"similarity": pytest.approx(0.6)}
    assert {number: "by its value"}[number]


def test_similarity_is_the_cosine_whatever_the_lengths():
    others = np.array([[5.0, 0], [0, 1], [-1, 0], [0, 0]])
    assert similarity(np.array([2.0, 0]), others) == pytest.approx([1, 0, -1, 0])


def test_vectors_of_different_dimensions_cannot_be_compared():
    with pytest.raises(SpaceMismatch, match="3 and 2 dimensions"):
        similarity(np.ones(3), np.ones(2))
