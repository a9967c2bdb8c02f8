import pytest

from worker.backends.lost import is_beyond_repair

TORCH = "{}\nCUDA kernel errors might be asynchronously reported at some other API call."


class Unspeakable(RuntimeError):
    def __str__(self):
        raise AttributeError("what it would tell of is not there")


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: device-side assert triggered",
        "CUDA error: an illegal memory access was encountered",
        "HIP error: unspecified launch failure",
        "CUDA error: uncorrectable ECC error encountered",
    ],
)
def test_an_error_that_stays_with_the_process_is_known(said):
    assert is_beyond_repair(RuntimeError(TORCH.format(said)))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: invalid argument"),
        RuntimeError("the text says: device-side assert triggered"),
        ValueError("CUDA error: device-side assert triggered"),
        Unspeakable("of a plug-in"),
    ],
)
def test_other_errors_are_of_one_request(error):
    assert not is_beyond_repair(error)
