"""Tables of Arrow as sources and sinks read them."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

PLAIN = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_fixed_size_binary,
    pa.types.is_binary_view,
)


@contextmanager
def reading_parquet() -> Iterator[None]:
    """
    Raises:
        ArrowInvalid: for a broken page too, of which Arrow says by an OSError without a number; and
            for a time beyond Python's years, or of a zone that it does not know.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise pa.ArrowInvalid(str(error)) from error
        raise
    except (OverflowError, KeyError) as error:
        raise pa.ArrowInvalid(f"{type(error).__name__}: {error}") from error


def is_of_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return is_of_bytes(kind.value_type)
    return any(is_one(kind) for is_one in PLAIN) or any(
        is_of_bytes(kind.field(i).type) for i in range(kind.num_fields)
    )
