import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_client.wire import codec
from api_client.wire.errors import ClipyardError, ModelBusy
from api_client.wire.messages import Embedded, Failure, Managed, ModelStatus, Refused

FAILURE = Failure.of(ModelBusy("later"))


def embedded(rows, dimension, **fields):
    failures = {0: FAILURE} if fields.pop("failed", False) else {}
    return Embedded(
        model="a/b",
        dimension=dimension,
        fingerprint="f",
        items=rows + len(failures),
        failures=failures,
        **fields,
    )


@given(rows=st.integers(0, 5), dimension=st.integers(1, 9), failed=st.booleans())
def test_vectors_come_back_bit_for_bit(rows, dimension, failed):
    vectors = np.random.default_rng(0).normal(size=(rows, dimension)).astype(np.float32)
    sent = embedded(rows, dimension, failed=failed)
    answer, received = codec.unpack_answer(codec.pack_answer(sent, vectors))
    assert answer == sent
    assert np.array_equal(received, vectors)


def test_float16_halves_the_body_and_stays_close():
    vectors = np.full((4, 64), 0.125, np.float32)
    full = codec.pack_answer(embedded(4, 64), vectors)
    half = codec.pack_answer(embedded(4, 64, dtype="float16"), vectors)
    assert len(full) - len(half) > 4 * 64
    assert np.array_equal(codec.unpack_answer(half)[1], vectors)


@pytest.mark.parametrize(
    "answer",
    [
        Managed(worker="w", model=None, changed=False, message="nothing to do"),
        Refused(failure=Failure.of(ModelBusy("later"))),
    ],
)
def test_answers_without_vectors_come_back(answer):
    assert codec.unpack_answer(codec.pack_answer(answer)) == (answer, None)


@given(cut=st.integers(0, 60))
def test_a_cut_frame_is_refused(cut):
    frame = codec.pack_answer(embedded(2, 3), np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match=r".+"):
        codec.unpack_answer(frame[: min(cut, len(frame) - 1)])


WHOLE = codec.pack_answer(embedded(2, 3), np.ones((2, 3), np.float32))


def headed(header):
    return len(header).to_bytes(4, "little") + header


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (WHOLE[:3], "an answer of 3 bytes is too short"),
        (WHOLE[:20], "header was cut"),
        (headed(b"[]"), "names none of"),
        (headed(b"{}"), "names none of"),
        (headed(b'{"another": {}}'), "names none of"),
        (headed(b'{"managed": {}, "refused": {}}'), "names none of"),
        (WHOLE[:-4], "body is not 2 x 3 of float32"),
        (WHOLE + bytes(12), "body is not 2 x 3 of float32"),
    ],
)
def test_what_is_no_answer_is_told_why(frame, why):
    with pytest.raises(ValueError, match=why):
        codec.unpack_answer(frame)


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_raise_value_error(frame):
    with pytest.raises(ValueError, match=r".*"):
        codec.unpack_answer(frame)


@pytest.mark.parametrize(
    "impossible",
    [
        embedded(2, 3).model_copy(update={"failures": {7: FAILURE}}),
        embedded(2, 3).model_copy(update={"failures": {-1: FAILURE}}),
        embedded(10**12, 0),
        embedded(-1, -3),
    ],
)
def test_an_answer_whose_numbers_do_not_fit_is_refused(impossible):
    with pytest.raises(ValueError, match="an answer"):
        codec.unpack_answer(codec.pack_answer(impossible, np.ones((1, 3), np.float32)))


def test_a_record_survives_a_hash_and_a_newer_version():
    record = ModelStatus(id="a/b", state="device", leases=2, last_used=1.5)
    fields = {k.encode(): v.encode() for k, v in codec.pack_record(record).items()}
    assert codec.unpack_record(ModelStatus, fields | {b"later": b"1"}) == record


@pytest.mark.parametrize("junk", [b"canary", b"{}", b"\xff", b"7"])
def test_what_is_no_record_is_one_sentence_of_ours(junk):
    for unpack in (
        lambda: codec.unpack_record(ModelStatus, {b"id": junk}),
        lambda: codec.unpack_row(ModelStatus, junk),
    ):
        with pytest.raises(ClipyardError, match="what Redis holds as a ModelStatus") as it:
            unpack()
        assert "canary" not in str(it.value)
        assert "\n" not in str(it.value)
