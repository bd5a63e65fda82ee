"""Model files by their headers: whole, cut off, broken, and made to harm whoever reads them."""

from __future__ import annotations

import json
import os
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortexd.diagnosis import gguf
from cortexd.diagnosis.modelfiles import Survey, survey
from tests.support import lab


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def header(*, version: int = 3, tensors: int = 0, pairs: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


def tensor(name: bytes, dimensions: list[int], kind: int, offset: int) -> bytes:
    sizes = struct.pack(f"<{len(dimensions)}Q", *dimensions)
    return string(name) + struct.pack("<I", len(dimensions)) + sizes + struct.pack("<IQ", kind, offset)


def whole(*, alignment: int = 0) -> bytes:
    """Two tensors of 64 bytes each, behind a vocabulary."""
    words = b"".join(string(b"word%d" % n) for n in range(1000))
    pairs = string(b"tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 1000) + words
    if alignment:
        pairs += string(b"general.alignment") + struct.pack("<II", 4, alignment)
    tensors = tensor(b"a", [16], 0, 0) + tensor(b"b", [4, 4], 0, 64)
    head = header(tensors=2, pairs=2 if alignment else 1) + pairs + tensors
    step = alignment or 32
    return head + bytes(-len(head) % step) + bytes(128)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def problem(found: Survey) -> str:
    """The one thing that is wrong."""
    (fault,) = found.faults
    return fault.problem


def test_the_tiny_model_is_whole() -> None:
    found = survey(lab.TINY_GGUF)
    assert (found.faults, found.size, found.is_folder) == ((), lab.TINY_GGUF.stat().st_size, False)
    with lab.TINY_GGUF.open("rb") as file:
        assert gguf.end_of_data(file, found.size) == found.size


@pytest.mark.parametrize("alignment", [0, 64, 4096])
def test_to_the_byte(tmp_path: Path, alignment: int) -> None:
    data = whole(alignment=alignment)
    assert survey(write(tmp_path / "m.gguf", data)).faults == ()
    assert "are there of" in problem(survey(write(tmp_path / "m.gguf", data[:-1])))
    assert survey(write(tmp_path / "m.gguf", data + b"more")).faults == ()


@pytest.mark.parametrize("length", [4, 7, 23, 24, 60, 400, 2000])
def test_cut_off_inside_the_header(tmp_path: Path, length: int) -> None:
    assert "inside its own header" in problem(survey(write(tmp_path / "m.gguf", whole()[:length])))


HUGE = 2**63
HOSTILE = {
    "no magic": b"GGML" + bytes(100),
    "tensors": header(tensors=2**60) + bytes(1000),
    "pairs": header(pairs=2**60) + bytes(1000),
    "key": header(pairs=1) + struct.pack("<Q", HUGE) + bytes(1000),
    "string": header(pairs=1) + string(b"k") + struct.pack("<IQ", 8, HUGE) + bytes(1000),
    "strings": header(pairs=1) + string(b"k") + struct.pack("<IIQ", 9, 8, 2**60) + bytes(1000),
    "numbers": header(pairs=1) + string(b"k") + struct.pack("<IIQ", 9, 4, 2**62) + bytes(1000),
    "nesting": header(pairs=1) + string(b"k") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 9, 1) * 100,
    "type": header(pairs=1) + string(b"k") + struct.pack("<I", 77) + bytes(1000),
    "alignment": header(pairs=1, tensors=1) + string(b"general.alignment") + struct.pack("<II", 4, 3) + bytes(1000),
    "dimensions": header(tensors=1) + string(b"t") + struct.pack("<I", 2**31) + bytes(1000),
    "product": header(tensors=1) + tensor(b"t", [2**64 - 1] * 4, 0, 2**64 - 1) + bytes(1000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_costs_neither_memory_nor_time(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "m.gguf", HOSTILE[name])
    tracemalloc.start()
    began = time.monotonic()
    found = survey(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.monotonic() - began < 1
    assert peak < 8 << 20
    assert problem(found)


@settings(max_examples=300, deadline=1000)
@given(st.integers(0, 400), st.binary(min_size=1, max_size=12))
def test_whatever_stands_there_nothing_but_its_words_come_out(
    tmp_path_factory: pytest.TempPathFactory, at: int, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.gguf"
    good = whole()
    write(path, good[:at] + data + good[at + len(data) :])
    survey(path)


@pytest.mark.parametrize("version", [1, 4, 2**24])
def test_other_versions_are_not_judged(tmp_path: Path, version: int) -> None:
    assert survey(write(tmp_path / "m.gguf", header(version=version))).faults == ()


def test_a_split_model_is_all_its_parts(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for part in parts:
        write(part, whole())
    found = survey(parts[0])
    assert (found.faults, found.size, found.files) == ((), 3 * len(whole()), tuple(parts))
    parts[1].unlink()
    write(parts[2], whole()[:-5])
    missing, cut = survey(parts[0]).faults
    assert (missing.path, missing.problem, cut.path) == (parts[1], "is missing", parts[2])
    assert problem(survey(parts[2])) == "is not the first part"
    assert survey(parts[2]).faults[0].remedy == "give m-00001-of-00003.gguf"


def tensors(*sizes: int) -> bytes:
    """A safetensors file."""
    at, entries = 0, {}
    for number, size in enumerate(sizes):
        entries[f"t{number}"] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
        at += size
    head = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    return struct.pack("<Q", len(head)) + head + bytes(at)


def test_safetensors_to_the_byte(tmp_path: Path) -> None:
    data = tensors(10, 300)
    path = tmp_path / "model.safetensors"
    assert survey(write(path, data)).faults == ()
    assert "is cut off" in problem(survey(write(path, data[:-1])))
    assert "is cut off" in problem(survey(write(path, data[:20])))
    assert "is broken" in problem(survey(write(path, data + b"x")))
    assert problem(survey(write(path, b""))) == "is empty"


@pytest.mark.parametrize("data", [
    b"short", struct.pack("<Q", HUGE) + bytes(100), struct.pack("<Q", 4) + b"null", struct.pack("<Q", 5) + b'{"a":',
    struct.pack("<Q", 10) + b'{"a": {} }', struct.pack("<Q", 200_000) + b"[" * 200_000,
    struct.pack("<Q", 28) + b'{"a": {"data_offsets":[0,-1]}}'[:28],
])  # fmt: skip
def test_hostile_safetensors(tmp_path: Path, data: bytes) -> None:
    assert problem(survey(write(tmp_path / "m.safetensors", data)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in two parts, as on the hub."""
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name in names:
        write(tmp_path / name, tensors(100))
    index = {"metadata": {}, "weight_map": {f"layer{n}": names[n % 2] for n in range(10)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text("{}")
    write(tmp_path / "pytorch_model.bin", bytes(1000))
    return tmp_path


def test_a_folder(folder: Path) -> None:
    found = survey(folder)
    assert (found.faults, found.is_folder) == ((), True)
    assert found.size == 2 * len(tensors(100))  # the same weights in another format do not count
    assert "config.json" in found.names


def test_a_folder_with_a_part_missing_and_another_cut_off(folder: Path) -> None:
    one, two = sorted(folder.glob("model-*.safetensors"))
    one.unlink()
    os.truncate(two, 50)
    assert {(fault.path, fault.problem.split(":")[0]) for fault in survey(folder).faults} == {
        (one, "is missing, and model.safetensors.index.json names it"), (two, "is cut off"),
    }  # fmt: skip


def test_an_index_that_is_none_and_one_that_points_elsewhere(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    for text in ("[]", "{", "[" * 100_000, '{"weight_map": 1}'):
        index.write_text(text)
        assert problem(survey(folder)) == "is no index of safetensors files"
    index.write_text(json.dumps({"weight_map": {"a": "../../../etc/passwd", "b": ".", "c": 1}}))
    assert all(path.parent == folder for path in survey(folder).files)


def test_an_index_too_large_to_be_parsed_is_no_fault(folder: Path) -> None:
    """Real ones have up to some 15 MiB: parsing would hold up everybody, and without it the weights are found all the same."""
    before = survey(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}' + " " * (4 << 20))
    found = survey(folder)
    assert (found.faults, found.size) == (before.faults, before.size)


def test_a_dangling_link_and_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").symlink_to("blobs/gone")
    assert problem(survey(tmp_path)) == "links to a file that is not there"
    os.mkfifo(tmp_path / "pipe.gguf")
    assert problem(survey(tmp_path / "pipe.gguf")) == "is no file"  # and nobody waits for its other end


def test_other_formats_are_only_weighed(tmp_path: Path) -> None:
    found = survey(write(tmp_path / "ggml-base.bin", b"lmgg" * 10))
    assert (found.faults, found.size) == ((), 40)
    assert survey(tmp_path / "gone").faults[0].problem == "is missing"
