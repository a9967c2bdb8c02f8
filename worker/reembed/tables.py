"""Parquet as sources and sinks read it."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa


@contextmanager
def reading_parquet() -> Iterator[None]:
    """
    Raises:
        ArrowInvalid: for a broken page too, of which Arrow says by an OSError without a number.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise pa.ArrowInvalid(str(error)) from error
        raise
