"""What lies where a model's path points: whether its files are all there and whole, by their headers, and how large it is.

Looks and does not judge where it cannot know: files of other formats are only weighed. Blocking; `Survey` is all that
leaves here. What a header says is believed only as far as the file reaches.
"""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cortexd.bounded import unwaiting
from cortexd.diagnosis import gguf

_MAX_HEADER = 100_000_000  # bytes; safetensors' own limit for its header
_READ_HEADER = 16 << 20  # bytes of it that are parsed here; one of more is only weighed
_MAX_INDEX = 4 << 20  # bytes that are parsed; a model of a larger one is only weighed
_MAX_FILES = 4096
_INDEX = "model.safetensors.index.json"
_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
_SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_PLAIN = re.compile(r"[^/\0.][^/\0]*")
_AGAIN = "download it again"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with one file."""

    path: Path
    problem: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Survey:
    """What lies there."""

    names: frozenset[str] = frozenset()
    """The files in a folder; of a file, nothing."""
    files: tuple[Path, ...] = ()
    """The files that the server has to read, as it calls them."""
    size: int = 0
    """Bytes of the weights."""
    faults: tuple[Fault, ...] = ()
    is_folder: bool = False


def survey(path: Path) -> Survey:
    """Look at a model's file or folder. What cannot be read is a fault, never an exception."""
    try:
        if path.is_dir():
            return _survey_folder(path)
        found = _parts(path)
    except OSError as e:
        return Survey(faults=(Fault(path, _says(e), "check the path and the modes of its folders"),))
    if isinstance(found, Fault):
        return Survey(faults=(found,))
    return _survey_files(found, is_folder=False)


def _parts(path: Path) -> list[Path] | Fault:
    """The file, or all parts of a split one."""
    split = _SPLIT.fullmatch(path.name)
    if split is None:
        return [path]
    count = int(split[3])
    if int(split[2]) != 1:
        return Fault(path, "is not the first part", f"give {split[1]}-00001-of-{split[3]}.gguf")
    if not 1 <= count <= _MAX_FILES:
        return Fault(path, f"is part of {count}", "check its name")
    return [path.with_name(f"{split[1]}-{number:05}-of-{split[3]}.gguf") for number in range(1, count + 1)]


def _survey_folder(folder: Path) -> Survey:
    names: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            names.append(entry.name)
            if len(names) >= _MAX_FILES:
                break
    faults = []
    wanted: set[str] = set()
    if _INDEX in names:
        try:
            wanted = _indexed(folder / _INDEX)
        except OSError as e:
            faults.append(Fault(folder / _INDEX, _says(e), "check its mode"))
        except ValueError:
            faults.append(Fault(folder / _INDEX, "is no index of safetensors files", _AGAIN))
    for name in sorted(wanted - set(names)):
        if len(names) < _MAX_FILES and not (folder / name).exists():
            faults.append(Fault(folder / name, f"is missing, and {_INDEX} names it", _AGAIN))
    weights = sorted(wanted & set(names)) or _weights(names)
    others = [n for n in names if n.endswith((".json", ".model", ".txt", ".jinja")) and n not in weights]
    found = _survey_files([folder / name for name in weights], is_folder=True)
    files = (*found.files, *(folder / name for name in sorted(others)))
    return Survey(frozenset(names), files, found.size, (*faults, *found.faults), is_folder=True)


def _weights(names: list[str]) -> list[str]:
    """Of a folder without an index: those of the first format that is there, since each would be the whole model."""
    for suffix in _WEIGHTS:
        if found := sorted(name for name in names if name.endswith(suffix)):
            return found
    return []


def _survey_files(paths: list[Path], *, is_folder: bool) -> Survey:
    size, faults = 0, []
    for path in paths:
        try:
            length, fault = _inspect(path)
        except FileNotFoundError:
            what = "links to a file that is not there" if path.is_symlink() else "is missing"
            length, fault = 0, Fault(path, what, _AGAIN)
        except OSError as e:
            length, fault = 0, Fault(path, _says(e), "check its mode and those of its folders")
        size += length
        faults += [fault] if fault else []
    return Survey(files=tuple(paths), size=size, faults=tuple(faults), is_folder=is_folder)


def _says(error: OSError) -> str:
    return f"cannot be read: {error.strerror}"


def _inspect(path: Path) -> tuple[int, Fault | None]:
    """The file's size, and what is wrong with it. Raises OSError."""
    with open(path, "rb", buffering=0, opener=unwaiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            return 0, Fault(path, "is no file", "give a model's file or folder")
        size = status.st_size
        if path.name.endswith(_WEIGHTS) and size == 0:
            return 0, Fault(path, "is empty", _AGAIN)
        if path.name.endswith(".gguf"):
            return size, _gguf_fault(path, file, size)
        if path.name.endswith(".safetensors"):
            return size, _safetensors_fault(path, file, size)
        return size, None


_gguf_ends: dict[tuple[int, ...], int] = {}
"""By the file's identity: a vocabulary of real size takes 0.1 s to go past, and a file seldom changes."""
_MAX_ENDS = 1024


def _gguf_end(file: BinaryIO, size: int) -> int:
    status = os.fstat(file.fileno())
    identity = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, size)
    if identity not in _gguf_ends:
        if len(_gguf_ends) >= _MAX_ENDS:
            _gguf_ends.clear()
        _gguf_ends[identity] = gguf.end_of_data(file, size)
    return _gguf_ends[identity]


def _gguf_fault(path: Path, file: BinaryIO, size: int) -> Fault | None:
    try:
        end = _gguf_end(file, size)
    except gguf.NotGguf:
        return Fault(path, "is no GGUF file", "give one, or convert the model to GGUF")
    except gguf.CutOff:
        return Fault(path, f"is cut off: it ends after {size_of(size)}, inside its own header", _AGAIN)
    except gguf.Broken as e:
        return Fault(path, f"is broken: {e}", _AGAIN)
    return _cut_off(path, size, end)


def _cut_off(path: Path, size: int, end: int) -> Fault | None:
    if size >= end:
        return None
    return Fault(path, f"is cut off: {size_of(size)} are there of {size_of(end)}", _AGAIN)


def _safetensors_fault(path: Path, file: BinaryIO, size: int) -> Fault | None:
    """The first 8 bytes say how long the header is; the tensors it lists fill the rest (safetensors' README.md)."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > _MAX_HEADER:
        return Fault(path, "is no safetensors file", _AGAIN)
    if 8 + length > size:
        return _cut_off(path, size, 8 + length)
    if length > _READ_HEADER:
        return None
    try:
        end = _last_offset(json.loads(_read(file, length)))
    except (ValueError, RecursionError):
        return Fault(path, "is broken: its header is none of safetensors'", _AGAIN)
    if size > 8 + length + end:
        return Fault(path, f"is broken: {size_of(size)} are there of {size_of(8 + length + end)}", _AGAIN)
    return _cut_off(path, size, 8 + length + end)


def _read(file: BinaryIO, length: int) -> bytes:
    """Exactly `length` bytes, or ValueError: a raw read may bring less."""
    parts = []
    while length and (part := file.read(length)):
        parts.append(part)
        length -= len(part)
    if length:
        raise ValueError
    return b"".join(parts)


def _last_offset(header: object) -> int:
    if not isinstance(header, dict):
        raise ValueError
    return max((_end(entry) for name, entry in header.items() if name != "__metadata__"), default=0)


def _end(entry: object) -> int:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int and n >= 0 for n in offsets)):
        raise ValueError
    return int(offsets[1])


def _indexed(path: Path) -> set[str]:
    """The files that an index names; none where it is too large to be parsed. Raises OSError, ValueError."""
    with open(path, "rb", opener=unwaiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError
        text = file.read(_MAX_INDEX + 1)
    if len(text) > _MAX_INDEX:
        return set()
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError from None
    weights = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(weights, dict):
        raise ValueError
    names = {name for name in weights.values() if isinstance(name, str) and _PLAIN.fullmatch(name)}
    if len(names) > _MAX_FILES:
        raise ValueError
    return names


def size_of(count: int) -> str:
    """Bytes, rounded, for a message."""
    for suffix, unit in (("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if count >= unit:
            return f"{count / unit:.1f}{suffix}"
    return f"{count} bytes"
