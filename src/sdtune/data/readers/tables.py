"""Rows of JSON lines, CSV and TSV files, each with its line; a fault for each that is none."""

from __future__ import annotations

import csv
import io
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdtune.data.layouts import Found, not_utf8, reason, text_of

Row = tuple[int, dict[Any, Any]]


def content_of(path: Path, found: Found) -> Any:
    """What a JSON or TOML file holds; None if it cannot be read, which is then a fault."""
    text = text_of(path, path.name, found)
    if text is None:
        return None
    try:
        return tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and JSONDecodeError are ValueErrors
        found.fault(path.name, f"not valid {path.suffix[1:].upper()}: {error}")
    return None


def jsonl(path: Path, found: Found) -> Iterator[Row]:
    """The objects of a JSON lines file."""
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        return found.fault(path.name, reason(error))
    for number, raw in enumerate(lines, 1):
        where = f"{path.name}:{number}"
        if not raw.strip():
            continue
        try:
            row = json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            found.fault(where, not_utf8(raw, error))
            if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                return None
        except (ValueError, RecursionError) as error:
            found.fault(where, f"not valid JSON: {error}; mend or remove the line")
        else:
            if isinstance(row, dict):
                yield number, row
            else:
                found.fault(where, 'not an object like {"file_name": "a.png", "text": "a cat"}')
    return None


def csv_rows(path: Path, found: Found, delimiter: str = ",") -> Iterator[Row]:
    """The rows of a table whose first line names the columns; `delimiter` "\t" for a TSV file."""
    raw = b""
    try:
        raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return found.fault(f"{path.name}:{raw[: error.start].count(10) + 1}", not_utf8(raw, error))
    except OSError as error:
        return found.fault(path.name, reason(error))
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    last = 1  # a quoted caption may span lines: a row is named by its first one
    try:
        for row in reader:
            line, last = last + 1, reader.line_num
            if None in row or None in row.values():
                remedy = "put captions with commas in quotes" if delimiter == "," else "mend or remove the line"
                found.fault(f"{path.name}:{line}", f"other fields than the first line has; {remedy}")
            else:
                yield line, row
    except csv.Error as error:
        found.fault(f"{path.name}:{last + 1}", f"not valid CSV: {error}")
    return None
