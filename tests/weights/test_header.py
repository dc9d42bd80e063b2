"""A safetensors header is read as safetensors reads it, and everything that does not add up is refused."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from backend.errors import SpecError
from backend.weights.header import (
    MAX_HEADER,
    MAX_HEADERS,
    MAX_TENSORS,
    Allowance,
    header_from,
    read_header,
    read_headers,
)
from tests.support.paper_models import TENSORS


def written(folder: Path, header: Any, data: int = 8) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(data))
    return path


def tensor(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_a_header_says_what_safetensors_says(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({**TENSORS, "scalar": np.array(3, np.float32), "none": np.zeros((0, 4), np.int8)}, path, {"format": "pt"})
    header = read_header(path)
    data = path.read_bytes()
    with safe_open(path, "np") as reference:
        assert {t.name for t in header.tensors} == set(reference.keys())
        for t in header.tensors:
            there = reference.get_tensor(t.name)
            start, end = header.offsets[t.name]
            assert (t.shape, data[start:end]) == (there.shape, there.tobytes())
        assert header.metadata == reference.metadata()


def test_a_header_longer_than_the_first_read_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({f"layer.{i}.weight": np.zeros(1, np.int8) for i in range(3000)}, path)
    assert len(read_header(path).tensors) == 3000


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        (b"{", 8, "not valid JSON"),
        (b"[]", 8, "no JSON object"),
        (b"\xff\xfe", 8, "not UTF-8"),
        (b'{"a": 1, "a": 2}', 8, "twice"),
        (b"[" * 90_000, 8, "deep"),
        ({"a": tensor(), "b": tensor(offsets=(4, 12))}, 12, "'b' overlaps"),
        ({"a": tensor(), "b": tensor(offsets=(12, 20))}, 20, "'b' leaves a gap"),
        ({"a": tensor()}, 4, "describes"),
        ({"a": tensor()}, 9, "describes"),
        ({"a": tensor(dtype="F128")}, 8, "unknown type 'F128'"),
        ({"a": tensor(dtype="F16")}, 8, "do not fill"),
        ({"a": tensor(shape=(-2,))}, 8, "impossible shape"),
        ({"a": tensor(shape=(True, 2))}, 8, "impossible shape"),
        ({"a": tensor(shape=(2**62, 2**62))}, 8, "do not fill"),
        ({"a": tensor(offsets=(8, 0))}, 8, "wrong offsets"),
        ({"a": tensor(offsets=(0, 8, 9))}, 8, "wrong offsets"),
        ({"a": tensor(dtype="F4", shape=(3,), offsets=(0, 1))}, 1, "do not fill"),
        ({"a": {"dtype": "F32"}}, 8, "describes tensor 'a' wrongly"),
        ({"a": tensor(), "__metadata__": {"x": 1}}, 8, "not text"),
        ({"a\u202eb": tensor()}, 8, "unprintable"),
    ],
)
def test_a_header_that_does_not_add_up_is_refused_by_name(tmp_path: Path, header: Any, data: int, words: str) -> None:
    with pytest.raises(SpecError, match=r"^'model\.safetensors' ") as refusal:
        read_header(written(tmp_path, header, data))
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "only 0 bytes"),
        (b"\x00" * 7, "only 7 bytes"),
        (struct.pack("<Q", 2**63) + b"{}", "announces"),
        (struct.pack("<Q", 100) + b"{}", "announces"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "announces"),
    ],
)
def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=words):
        read_header(path)


def test_a_missing_file_is_named_without_its_folder(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as refusal:
        read_header(tmp_path / "model.safetensors")
    assert str(tmp_path) not in str(refusal.value)


def test_a_header_that_is_too_long_is_refused_before_it_is_read() -> None:
    asked: list[tuple[int, int]] = []

    def read(start: int, end: int) -> bytes:
        asked.append((start, end))
        return struct.pack("<Q", MAX_HEADER + 1) + bytes(end - start - 8)

    with pytest.raises(SpecError, match="announces a header of"):
        header_from(read, 10 * MAX_HEADER, "model.safetensors")
    assert sum(end - start for start, end in asked) <= 1 << 16


def test_the_headers_of_all_shards_together_are_bounded_in_bytes_that_are_read(tmp_path: Path) -> None:
    size, read = 1_000_000, 0
    raw = json.dumps({"__metadata__": {"": "x" * (size - 24)}}).encode()
    start = struct.pack("<Q", len(raw)) + raw

    def part(first: int, last: int) -> bytes:
        nonlocal read
        read += last - first
        return start[first:last]

    allowance = Allowance()

    def shards() -> None:
        for number in range(100):
            header_from(part, len(start), f"model-{number}.safetensors", allowance=allowance)

    with pytest.raises(SpecError, match=f"more than {MAX_HEADERS} bytes together"):
        shards()
    assert read < 1.1 * MAX_HEADERS + size


@pytest.mark.parametrize(
    "header",
    [
        lambda: {f"t{i:06d}": {} for i in range(MAX_TENSORS + 10_001)},
        lambda: [[] for _ in range(2 * MAX_TENSORS + 10_002)],
        lambda: [{} for _ in range(MAX_TENSORS + 10_001)],
        lambda: {"a": ["data_offsets"] * (MAX_TENSORS + 1)},
    ],
)
def test_what_lists_too_much_is_refused_before_any_of_it_is_built(tmp_path: Path, header: Callable[[], Any]) -> None:
    with pytest.raises(SpecError, match=f"more than {MAX_TENSORS} tensors"):
        read_header(written(tmp_path, json.dumps(header(), separators=(",", ":")).encode()))


def test_tensors_of_many_shards_are_counted_together(tmp_path: Path) -> None:
    names = [f"t{i:05d}" for i in range(MAX_TENSORS // 2)]
    raw = json.dumps({name: tensor("I8", (0,), (0, 0)) for name in names}, separators=(",", ":")).encode()
    shard = tmp_path / "model-1.safetensors"
    shard.write_bytes(struct.pack("<Q", 2) + b"{}")
    allowance = Allowance()
    allowance.take("model-0.safetensors", tensors=MAX_TENSORS)
    assert read_header(shard, allowance).tensors == ()
    shard.write_bytes(struct.pack("<Q", len(raw)) + raw)
    with pytest.raises(SpecError, match="tensors"):
        read_header(shard, allowance)


def test_a_name_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="longer than 500 characters"):
        read_header(written(tmp_path, {"a." * 300 + "weight": tensor()}))


def test_the_headers_of_two_hundred_shards_of_a_large_model_are_read(tmp_path: Path) -> None:
    paths = []
    for number in range(200):
        names = [f"model.layers.{number}.self_attn.{i}.weight" + "_" * 60 for i in range(100)]
        raw = json.dumps({name: tensor("I8", (0,), (0, 0)) for name in names}).encode()
        paths.append(tmp_path / f"model-{number:05d}-of-00200.safetensors")
        paths[-1].write_bytes(struct.pack("<Q", len(raw)) + raw)
    assert sum(len(header.tensors) for header in read_headers(paths).values()) == 20_000
