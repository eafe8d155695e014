"""Pictures in the rows of Arrow and Parquet files, called by a path through the file: data.arrow/000123.png. Imports no torch.

Such a name is the number of the row, from 0; a column other than the file's own for pictures stands before it: data.arrow/mask/000123.
Arrow files are mapped into memory, of Parquet files one row group is read at a time: no file is ever in memory as a whole, but a
compressed Arrow file (`datasets` writes none), whose columns are unpacked when it is opened.
"""

from __future__ import annotations

import errno
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any, NamedTuple, Protocol

from sdtune.errors import DataError

SUFFIXES = (".arrow", ".parquet")
NEEDED = "needs pyarrow: pip install 'sdtune[parquet]'"
USUAL = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp")
"""Names of the column of pictures, where there are several such columns, or its type does not say so."""
LARGEST_GROUP = 2**31
"""Bytes of pictures in one row group of a Parquet file: a group is read as a whole."""


class Cell(NamedTuple):
    """What a row says of a picture before its bytes are read."""

    embedded: bool
    """Whether the bytes are in the file."""
    name: str | None
    """The name of the file that they were read from, or are to be read from."""


class Table(Protocol):
    """One open file."""

    schema: Any

    def buffer(self, column: str, row: int) -> Any:
        """The bytes of a picture as a buffer; None for none. Raises IndexError."""

    def read(self, columns: Sequence[str], pictures: Sequence[str]) -> Iterator[tuple[dict[str, Any], dict[str, Cell]]]:
        """Of each row the values of `columns`, and what it says of `pictures`."""


def read_bytes(path: Path, name: str) -> bytes:
    """The bytes of the picture that is called `name` in the file `path`. Raises OSError."""
    return bytes(memoryview(_buffer(path, name)))


def size(path: Path, name: str) -> int:
    """Their number. Raises OSError."""
    return int(_buffer(path, name).size)


def table(path: Path) -> Table:
    """Raises DataError without a name: pyarrow is missing, or the file is damaged."""
    try:
        stat = path.stat()
        with _opening:  # to open is to check the whole file: of several threads the first does it
            return _open(path, stat.st_mtime_ns, stat.st_size)
    except ImportError:
        raise DataError(NEEDED) from None
    except _errors() as error:
        raise DataError(f"damaged or not of its kind ({_line(error)}); write or download it again") from None


def picture_columns(schema: Any) -> list[str]:
    """The columns that hold pictures, the file's own first: what `datasets` calls an Image; else bytes, by type or by name."""
    import pyarrow as pa

    def holds(field: Any) -> bool:
        if pa.types.is_struct(field.type):
            return any(field.type.field(i).name == "bytes" for i in range(field.type.num_fields))
        if features(schema).get(field.name, {}).get("_type") == "Image":
            return True
        return (pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)) and field.name.lower() in USUAL

    found = [field.name for field in schema if holds(field)]
    return sorted(found, key=lambda name: USUAL.index(name.lower()) if name.lower() in USUAL else len(USUAL))


def features(schema: Any) -> dict[str, dict[str, Any]]:
    """What `datasets` wrote of the columns: name -> {"_type": "Image"}, for example."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {str(name): feature for name, feature in found.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def light_columns(schema: Any) -> list[str]:
    """The columns of texts, lists of texts, numbers and truths."""
    import pyarrow as pa

    def text(kind: Any) -> bool:
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))

    def light(kind: Any) -> bool:
        listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        return text(kind) or bool(number) or bool(listed and text(kind.value_type))

    return [field.name for field in schema if light(field.type)]


def class_names(schema: Any, column: str) -> list[str]:
    """The words that the numbers of a column stand for, if it is a ClassLabel of `datasets`."""
    names = features(schema).get(column, {}).get("names")
    return [str(name) for name in names] if isinstance(names, list) else []


# ---- names


def _buffer(path: Path, name: str) -> Any:
    *column, row = PurePosixPath(name).parts
    number = row.partition(".")[0]
    try:
        opened = table(path)
        column = column or picture_columns(opened.schema)[:1]
        if len(column) == 1 and number.isdecimal() and (found := opened.buffer(column[0], int(number))) is not None:
            return found
    except IndexError:
        pass
    except DataError as error:
        raise OSError(errno.EIO, str(error), str(path)) from None
    except _errors() as error:
        raise OSError(errno.EIO, f"its row of {path.name} is damaged ({_line(error)})", str(path)) from None
    raise FileNotFoundError(errno.ENOENT, f"no such picture in {path.name}", str(path / name))


def _errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises: some of its errors are built-in ones, some are not."""
    try:
        from pyarrow import ArrowException
    except ImportError:
        return (OSError, ValueError, KeyError)
    return (OSError, ValueError, KeyError, ArrowException)


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:100] or type(error).__name__


# ---- files


_opening = Lock()


@lru_cache(maxsize=256)
def _open(path: Path, modified: int, length: int) -> Table:
    """`modified` and `length` make a changed file a new one."""
    return _Parquet(path, (modified, length)) if path.suffix == ".parquet" else _Arrow(path)


class _Arrow:
    """The stream of record batches that `datasets` writes, or an Arrow file of others: mapped, so that only what is touched is read."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        source = pa.memory_map(str(path))
        begins = source.read(6)
        source.seek(0)
        opened = pa.ipc.open_file(source) if begins == b"ARROW1" else pa.ipc.open_stream(source)
        self._table = opened.read_all()
        self._table.validate(full=True)  # offsets out of bounds would be read without a question
        self.schema = self._table.schema

    def buffer(self, column: str, row: int) -> Any:
        return _bytes_of(self._table.column(column)[row]) if column in self.schema.names else None

    def read(self, columns: Sequence[str], pictures: Sequence[str]) -> Iterator[tuple[dict[str, Any], dict[str, Cell]]]:
        for batch in self._table.select([*dict.fromkeys([*columns, *pictures])]).to_batches():
            cells = {name: _cells(batch.column(name)) for name in pictures}
            yield from _rows(batch.select(list(columns)).to_pylist(), cells, batch.num_rows)


class _Parquet:
    """Row group by row group; the few used last are kept, since neighbours are asked for one after the other."""

    def __init__(self, path: Path, stamp: tuple[int, int]) -> None:
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:
            self._path, self._stamp, self._metadata, self.schema = path, stamp, file.metadata, file.schema_arrow
        groups = range(self._metadata.num_row_groups)
        self._starts = [0, *accumulate(self._metadata.row_group(g).num_rows for g in groups)]
        for name in picture_columns(self.schema):
            for g in groups:
                if (size := sum(c.total_uncompressed_size for c in self._chunks(g, name))) > LARGEST_GROUP:
                    raise ValueError(f"a row group of {size / 2**30:.0f} GB; write it with row_group_size=100")

    def buffer(self, column: str, row: int) -> Any:
        if column not in self.schema.names or row >= self._starts[-1]:
            return None
        group = bisect_right(self._starts, row) - 1
        return _bytes_of(self._column(group, column)[row - self._starts[group]])

    def read(self, columns: Sequence[str], pictures: Sequence[str]) -> Iterator[tuple[dict[str, Any], dict[str, Cell]]]:
        from pyarrow import parquet

        with parquet.ParquetFile(self._path) as file:
            for group in range(self._metadata.num_row_groups):
                values = file.read_row_group(group, columns=list(columns)).to_pylist() if columns else []
                cells = {name: self._described(file, group, name) for name in pictures}
                yield from _rows(values, cells, self._metadata.row_group(group).num_rows)

    def _described(self, file: Any, group: int, column: str) -> list[Cell]:
        """What the rows of a group say of their pictures, without reading those if the file says that all are there."""
        chunks = {c.path_in_schema: c for c in self._chunks(group, column)}
        data = chunks.get(f"{column}.bytes", chunks.get(column))
        whole = data is not None and data.statistics is not None and data.statistics.null_count == 0
        if whole and f"{column}.path" in chunks:
            paths = file.read_row_group(group, columns=[f"{column}.path"]).column(0)
            return [Cell(True, path) for chunk in paths.chunks for path in _field(chunk, "path").to_pylist()]
        if whole and "string" not in str(self.schema.field(column).type):
            return [Cell(True, None)] * self._metadata.row_group(group).num_rows
        return [cell for chunk in self._column(group, column).chunks for cell in _cells(chunk)]

    def _chunks(self, group: int, column: str) -> list[Any]:
        row_group = self._metadata.row_group(group)
        chunks = (row_group.column(i) for i in range(row_group.num_columns))
        return [c for c in chunks if c.path_in_schema.split(".")[0] == column]

    def _column(self, group: int, column: str) -> Any:
        with _one_at_a_time:  # of several threads that want one group, the first reads it
            return _read_group(self._path, self._stamp, group, column)


_one_at_a_time = Lock()


@lru_cache(maxsize=3)
def _read_group(path: Path, stamp: tuple[int, int], group: int, column: str) -> Any:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column], use_threads=False).column(0)


def _rows(
    values: Sequence[dict[str, Any]], cells: Mapping[str, Sequence[Cell]], count: int
) -> Iterator[tuple[dict[str, Any], dict[str, Cell]]]:
    for i in range(count):
        yield values[i] if values else {}, {name: of[i] for name, of in cells.items()}


def _bytes_of(scalar: Any) -> Any:
    """The buffer of a picture: of bytes, or of a struct with them; None for none."""
    if hasattr(scalar, "keys"):
        scalar = scalar["bytes"] if scalar.is_valid else None
    return scalar.as_buffer() if scalar is not None and hasattr(scalar, "as_buffer") else None


def _cells(array: Any) -> list[Cell]:
    """What an array of pictures says of each."""
    import pyarrow as pa

    if pa.types.is_struct(array.type):
        names = _field(array, "path").to_pylist() if array.type.get_field_index("path") >= 0 else [None] * len(array)
        return [Cell(there, name) for there, name in zip(_there(_field(array, "bytes")), names, strict=True)]
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        return [Cell(False, name) for name in array.to_pylist()]
    return [Cell(there, None) for there in _there(array)]


def _field(array: Any, name: str) -> Any:
    """A field of an array of structs, null where the struct is."""
    return array.flatten()[array.type.get_field_index(name)]


def _there(array: Any) -> list[bool]:
    return [bool(there) for there in array.is_valid().to_pylist()]
