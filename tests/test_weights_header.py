"""A safetensors header is read as safetensors reads it, and everything that does not add up is refused."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from backend.errors import SpecError
from backend.weights.header import read_header
from tests.paper_models import TENSORS


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
