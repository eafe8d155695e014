"""The tensors of a .pth, .pt or .bin file, without running it.

Such a file is a pickle: a small program, which may call anything when it is loaded. Published weights often exist in no
other form. Here the program is read one instruction at a time, and only those that build tuples, lists, dictionaries,
texts, numbers and tensors are followed; the names of functions and classes are never looked up. What else a file asks for
becomes an inert `Named`, or is refused. Known files are also held to their SHA-256 (registry.py).

Format: torch.save since 1.6 is a zip of data.pkl and data/KEY; before, it is five pickles and the storages one after another.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from sdtune.errors import EvaluationError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAGIC = 0x1950A86A20F9469CFC6C
"""The first number in a file of before torch 1.6."""
MOST_INSTRUCTIONS = 5_000_000
_ORDERED = ("collections", "OrderedDict")
_TENSOR = ("torch._utils", "_rebuild_tensor_v2")
_PARAMETER = ("torch._utils", "_rebuild_parameter")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES = frozenset(
    {
        "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "BINUNICODE8",
        "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "BINBYTES8", "SHORT_BINBYTES",
    }
)  # fmt: skip


class Unsafe(ValueError):
    """The file asks for more than tensors."""


@dataclass(frozen=True)
class Named:
    """The name of a function or class that the file mentions, and what it would be given. Never looked up, never called."""

    module: str
    name: str
    given: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Storage:
    """Where the numbers of tensors lie."""

    kind: str
    """Such as FloatStorage."""
    key: str
    length: int


@dataclass
class Loose:
    """A tensor whose numbers are not read yet."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass
class _Machine:
    """The stack and memory of a pickle that is being followed."""

    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def since_mark(self) -> list[Any]:
        if not self.marks:
            raise Unsafe("its instructions are out of order")
        at = self.marks.pop()
        found, self.stack[at:] = self.stack[at:], []
        return found

    def pop(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise Unsafe("its instructions are out of order")
        found, self.stack[len(self.stack) - count :] = self.stack[len(self.stack) - count :], []
        return found


def read(path: Path) -> dict[str, Tensor]:
    """All tensors by name: of a state dict, or of the one inside a checkpoint ("state_dict", "model"). Raises EvaluationError."""
    try:
        with path.open("rb") as file:
            tree, numbers = _zipped(file) if zipfile.is_zipfile(file) else _plain(file)
            found = _state(tree)
            return {name: numbers(loose) for name, loose in found.items()}
    except (
        Unsafe,
        OSError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        struct.error,
        RecursionError,
        zipfile.BadZipFile,
    ) as error:
        raise EvaluationError(f"{path}: cannot be read as a file of weights: {error}; fetch it again") from None


def _state(tree: Any) -> dict[str, Loose]:
    """The dictionary of tensors: the tree itself, or what lies under its usual names."""
    for key in ("state_dict", "model", "params"):
        if isinstance(tree, Mapping) and isinstance(tree.get(key), Mapping):
            tree = tree[key]
    found = {k: v for k, v in tree.items() if isinstance(v, Loose)} if isinstance(tree, Mapping) else {}
    if not found:
        raise Unsafe("there is no dictionary of tensors in it")
    return found


# ---- the two formats


def _zipped(file: IO[bytes]) -> tuple[Any, Callable[[Loose], Tensor]]:
    archive = zipfile.ZipFile(file)
    index = next((n for n in archive.namelist() if n.endswith("/data.pkl") and n.count("/") == 1), None)
    if index is None:
        raise Unsafe("a zip without data.pkl")
    if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
        raise Unsafe("it is compressed, which files of weights are not")  # a few bytes could fill the memory
    folder = index.removesuffix("data.pkl")
    order = f"{folder}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise Unsafe("written on a machine of the other byte order")
    tree = run(archive.read(index))
    kept: dict[str, Any] = {}

    def numbers(loose: Loose) -> Tensor:
        key = loose.storage.key
        if key not in kept:
            kept[key] = _flat(loose.storage, archive.read(f"{folder}data/{key}"))
        return _view(kept[key], loose)

    return tree, numbers


def _plain(file: IO[bytes]) -> tuple[Any, Callable[[Loose], Tensor]]:
    file.seek(0)
    if _one(file) != MAGIC:
        raise Unsafe("neither a zip nor an older file of torch.save")
    _one(file)  # the format's version
    machine = _one(file)
    if isinstance(machine, Mapping) and machine.get("little_endian") is False:
        raise Unsafe("written on a machine of the other byte order")
    tree, keys = _one(file), _one(file)
    stores = {loose.storage.key: loose.storage for loose in _loose(tree)}
    flats: dict[str, Any] = {}
    for key in keys:
        (length,) = struct.unpack("<q", file.read(8))
        storage = stores.get(str(key))
        if storage is None or storage.length != length:
            raise Unsafe("its storages are not those that it names")
        flats[str(key)] = _flat(storage, file.read(length * _kind(storage).itemsize))
    return tree, lambda loose: _view(flats[loose.storage.key], loose)


def _loose(tree: Any) -> Iterator[Loose]:
    """Every tensor in it."""
    if isinstance(tree, Loose):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _loose(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _loose(value)


def _kind(storage: Storage) -> torch.dtype:
    import torch

    known = {
        "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
        "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "ByteStorage": torch.uint8,
        "ShortStorage": torch.int16, "CharStorage": torch.int8, "BoolStorage": torch.bool,
    }  # fmt: skip
    if storage.kind not in known:
        raise Unsafe(f"numbers of the kind {storage.kind}")
    return known[storage.kind]


def _flat(storage: Storage, data: bytes) -> Tensor:
    import torch

    dtype = _kind(storage)
    if len(data) != storage.length * dtype.itemsize:
        raise Unsafe("it is cut off")
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _view(flat: Tensor, loose: Loose) -> Tensor:
    count = int(np.prod(loose.size, dtype=np.float64))
    last = loose.offset + sum((n - 1) * s for n, s in zip(loose.size, loose.stride, strict=True))
    sound = min((loose.offset, *loose.size, *loose.stride)) >= 0 and count <= len(flat)
    if not sound or (count and last >= len(flat)):
        raise Unsafe("a tensor reaches beyond its numbers")
    return flat.as_strided(loose.size, loose.stride, loose.offset).clone()


# ---- the instructions


def run(data: bytes) -> Any:
    """What the pickle `data` builds."""
    return _one(io.BytesIO(data))


def _one(file: IO[bytes]) -> Any:
    """The next pickle of a file. Raises Unsafe for an instruction that is not followed."""
    machine = _Machine()
    for count, (code, value, _) in enumerate(pickletools.genops(file)):
        if count > MOST_INSTRUCTIONS:
            raise Unsafe("it never ends")
        if code.name == "STOP":
            return machine.pop(1)[0]
        _step(machine, code.name, value)
    raise Unsafe("it ends in the middle")


def _step(m: _Machine, code: str, value: Any) -> None:
    if code in _VALUES:
        m.stack.append(value)
    elif code in _CONSTANTS:
        m.stack.append(_CONSTANTS[code])
    elif code in ("PROTO", "FRAME"):
        pass
    elif code == "MARK":
        m.marks.append(len(m.stack))
    elif code in ("EMPTY_DICT", "EMPTY_LIST"):
        m.stack.append({} if code == "EMPTY_DICT" else [])
    elif code in ("BINPUT", "LONG_BINPUT", "PUT"):
        m.memo[int(value)] = m.stack[-1]
    elif code == "MEMOIZE":
        m.memo[len(m.memo)] = m.stack[-1]
    elif code in ("BINGET", "LONG_BINGET", "GET"):
        m.stack.append(m.memo[int(value)])
    elif code in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
        m.stack.append(tuple(m.since_mark() if code == "TUPLE" else m.pop(int(code[-1]))))
    elif code in ("APPEND", "APPENDS", "SETITEM", "SETITEMS"):
        _put(m, code)
    elif code == "GLOBAL":
        module, name = value.split(" ", 1)
        m.stack.append(Named(module, name))
    elif code == "STACK_GLOBAL":
        module, name = map(str, m.pop(2))
        m.stack.append(Named(module, name))
    elif code == "BINPERSID":
        m.stack.append(_storage(m.pop(1)[0]))
    elif code in ("REDUCE", "NEWOBJ"):
        m.stack.append(_built(*m.pop(2)))
    elif code == "BUILD":
        m.pop(1)  # the state of something inert, or what torch remembers of a state dict's versions
    else:
        raise Unsafe(f"the instruction {code}, which weights have no need of")


def _put(m: _Machine, code: str) -> None:
    """Values into the list or dictionary below them."""
    several = code.endswith("S")
    values = m.since_mark() if several else m.pop(1 if code == "APPEND" else 2)
    target = m.stack[-1]
    if code.startswith("APPEND"):
        if not isinstance(target, list):
            raise Unsafe("its instructions are out of order")
        target.extend(values)
    elif isinstance(target, dict):
        target.update(zip(values[::2], values[1::2], strict=True))
    elif not isinstance(target, Named):
        raise Unsafe("its instructions are out of order")


def _storage(named: Any) -> Storage:
    """("storage", its class, key, device, length, and of old files a view, which is no longer used)."""
    if not (isinstance(named, tuple) and len(named) >= 5 and named[0] == "storage" and isinstance(named[1], Named)):
        raise Unsafe("it points to something beside its storages")
    if len(named) > 5 and named[5] is not None:
        raise Unsafe("a storage that is a part of another one")
    return Storage(named[1].name, str(named[2]), int(named[4]))


def _built(what: Any, given: Any) -> Any:
    """A tensor, an ordered dictionary, or something inert."""
    if not isinstance(what, Named) or not isinstance(given, tuple):
        raise Unsafe("its instructions are out of order")
    name = (what.module, what.name)
    if name == _ORDERED:
        return dict(*given)
    if name == _TENSOR:
        storage, offset, size, stride = given[:4]
        if not isinstance(storage, Storage):
            raise Unsafe("a tensor without numbers")
        return Loose(storage, int(offset), tuple(map(int, size)), tuple(map(int, stride)))
    if name == _PARAMETER:
        return given[0]
    return Named(what.module, what.name, given)
