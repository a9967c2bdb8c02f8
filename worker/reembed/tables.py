"""Tables of Arrow as sources and sinks read them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
        ArrowInvalid: for a broken page too, of which Arrow says by an OSError without a number.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise pa.ArrowInvalid(str(error)) from error
        raise


def rows_of(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Its rows; times are to the microsecond, as Python's, and those of pandas often finer.

    Raises:
        ArrowInvalid: it has a time beyond Python's years, or of a zone that it does not know.
    """
    schema = pa.schema([field.with_type(_held_by_python(field.type)) for field in batch.schema])
    try:
        rows: list[dict[str, Any]] = batch.cast(schema, safe=False).to_pylist()
    except (OverflowError, KeyError) as error:
        raise pa.ArrowInvalid(f"{type(error).__name__}: {error}") from error
    return rows


def _held_by_python(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if pa.types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    if kind == pa.time64("ns"):
        return pa.time64("us")
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_held_by_python(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_held_by_python(kind.key_type), _held_by_python(kind.item_type))
    if hasattr(kind, "value_field"):  # a list of any kind
        held = _held_by_python(kind.value_type)
        return kind if held == kind.value_type else pa.list_(held)
    return kind


def is_of_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return is_of_bytes(kind.value_type)
    return any(is_one(kind) for is_one in PLAIN) or any(
        is_of_bytes(kind.field(i).type) for i in range(kind.num_fields)
    )
