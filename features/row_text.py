"""A row as one text, and its hash: the same for the same values whatever the order of maps, structs and columns."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, MapType, StructType

from dynamix.features.sql_text import named

JSON = {
    # Spark's default drops microseconds, which would make two events of one millisecond one event.
    "ignoreNullFields": "false",
    "timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX",
    "timestampNTZFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSS",
    "timeZone": "UTC",
}


def whole_row(frame: DataFrame, *, but: str = "") -> Column:
    """All columns in name order as a struct, `but` left out."""
    fields = sorted(
        ((f.name, f.dataType) for f in frame.schema.fields if f.name != but), key=lambda field: field[0]
    )
    return F.struct(*[ordered(F.col(named(name)), kind).alias(name) for name, kind in fields])


def row_text(row: Column) -> Column:
    """A `whole_row` as JSON without its NULLs: a column that a source has from some day on changes no earlier row."""
    return F.to_json(row, JSON | {"ignoreNullFields": "true"})


def text_hash(text: Column) -> Column:
    """First 32 hex digits of SHA-256."""
    return F.substring(F.sha2(text, 256), 1, 32)


def row_hash(row: Column) -> Column:
    """First 32 hex digits of SHA-256 over a `whole_row` as JSON, NULLs written out."""
    return text_hash(F.to_json(row, JSON))


def ordered(column: Column, data_type: DataType) -> Column:
    """The value with the keys of maps and structs in order, at any depth, so that its JSON is one text."""
    if isinstance(data_type, MapType):
        kind, keys = data_type.valueType, F.array_sort(F.map_keys(column))
        values = F.transform(keys, lambda key: ordered(F.try_element_at(column, key), kind))
        return F.map_from_arrays(keys, values)
    if isinstance(data_type, ArrayType):
        element = data_type.elementType
        return F.transform(column, lambda item: ordered(item, element))
    if isinstance(data_type, StructType):
        fields = sorted(data_type.fields, key=lambda field: field.name)
        rebuilt = F.struct(*[ordered(column[f.name], f.dataType).alias(f.name) for f in fields])
        return F.when(column.isNotNull(), rebuilt)
    return column
