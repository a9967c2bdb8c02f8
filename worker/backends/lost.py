"""Which errors mean that the process has lost its device for good."""

from traceback import format_exception_only

__all__ = ["is_beyond_repair"]

# Of these CUDA says: "The context must be destroyed (all existing allocations are invalid). To
# continue using CUDA, the process must be terminated and relaunched." HIP has taken them over.
_BEYOND_REPAIR = (
    "an illegal memory access was encountered",
    "device-side assert triggered",
    "unspecified launch failure",
    "misaligned address",
    "an illegal instruction was encountered",
    "hardware stack error",
    "operation not supported on global/shared address space",
    "invalid program counter",
    "the launch timed out and was terminated",
    "uncorrectable ecc error encountered",
    "uncorrectable nvlink error detected during the execution",
)


def is_beyond_repair(error: BaseException) -> bool:
    """By the driver's sentences, which torch quotes after `CUDA error: ` or `HIP error: `."""
    said = "".join(format_exception_only(error)).lower()  # str() may raise: a plug-in wrote it
    return (
        isinstance(error, RuntimeError)
        and ("cuda error" in said or "hip error" in said)
        and any(sentence in said for sentence in _BEYOND_REPAIR)
    )
