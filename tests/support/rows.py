"""Rows in files, opened and looked at."""

from pathlib import Path
from typing import Any

from backend.data.examine import Dataset, Examination, load
from backend.data.files.rows import Source
from backend.data.options import DatasetOptions
from backend.options import parse


def source(folder: Path, name: str, data: bytes, split: str | None = None) -> Source:
    (folder / name).write_bytes(data)
    return Source(name=name, files=(folder / name,), split=split)


def options(**given: Any) -> DatasetOptions:
    return parse(DatasetOptions, given)


def opened(folder: Path, name: str, data: bytes, **given: Any) -> Dataset:
    return load(source(folder, name, data), options(**given))


def contents(dataset: Dataset) -> list[list[str]]:
    return [[m.content for m in s.messages] or [s.text or ""] for s in dataset.train()]


def kinds(examination: Examination) -> dict[str, int]:
    return {finding.kind: finding.count for finding in examination.findings}
