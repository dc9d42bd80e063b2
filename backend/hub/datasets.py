"""Text from a data set on the Hub, for calibration and evaluation; Parquet, JSON lines or plain text, never a script.

Rows are joined by blank lines, the convention of the GPTQ paper's code for WikiText-2.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from backend.errors import SpecError
from backend.hub import client
from backend.hub.download import check_disk, fetch_file
from backend.hub.files import Entry, HubFiles
from backend.hub.names import parse_repo_id
from backend.progress import Report
from backend.strict_json import quoted

MAX_DOWNLOAD = 200_000_000
MAX_TEXT = 1_000_000_000  # bytes of UTF-8; Parquet can unpack to a thousand times its size
SUFFIXES = (".parquet", ".jsonl", ".txt")
SPLITS = ("test", "validation", "train")
_ALIASES = {"valid": "validation", "val": "validation", "dev": "validation", "eval": "validation", "training": "train"}

Layout = dict[str, dict[str, list[str]]]
"""Config → split → names of files."""


def fetch_text(dataset: str, target: Path, token: str | None, report: Report) -> str:
    """Write the text of a Hub data set's split to a file.

    Args:
        dataset: `id`, `id:config` or `id:config:split`.
        target: The file to write, UTF-8.
        token: Of who asks.
        report: Told the bytes.

    Returns:
        Its name for a card: `id (config, split, commit abc1234)`.

    Raises:
        SpecError: There is no such config, split or text column; what there is instead.
        HubError: The Hub refused or could not be reached.
    """
    repo_id, config, split = _parse(dataset)
    info = client.dataset_info(repo_id, None, token)
    files = HubFiles(repo_id, client.commit_of(info, repo_id), token, "dataset")
    client.check_access(repo_id, token, "dataset")
    entries = {e.name: e for e in files.entries() if e.name.lower().endswith(SUFFIXES) and ".." not in e.name}
    card: Mapping[str, Any] = info.card_data.to_dict() if info.card_data else {}  # type: ignore[no-untyped-call]
    layout = _layout(list(entries), card)
    if not layout:
        raise SpecError(f"'{repo_id}' has no Parquet, JSON lines or text files: choose another data set.")
    config = _choose(layout, config, repo_id, "config", ("default",))
    split = _choose(layout[config], split, repo_id, "split", SPLITS)
    wanted, note = _within_limit([entries[name] for name in layout[config][split]], repo_id)
    target.parent.mkdir(parents=True, exist_ok=True)
    check_disk(target.parent, 2 * sum(e.size for e in wanted), f"download '{repo_id}'")
    with TemporaryDirectory(dir=target.parent) as folder:
        _write(target, repo_id, (row for path in _download(files, wanted, Path(folder), report) for row in _rows(path)))
    return f"{repo_id} ({config}, {split}{note}, commit {files.commit[:7]})"


def _parse(dataset: str) -> tuple[str, str | None, str | None]:
    name, _, rest = (dataset, "", "") if "://" in dataset else dataset.strip().partition(":")
    config, _, split = rest.partition(":")
    try:
        return parse_repo_id(name), config or None, split or None
    except ValueError as e:
        raise SpecError(f"dataset: {e}", {"dataset": str(e)}) from e


def _layout(names: list[str], card: Mapping[str, Any]) -> Layout:
    """Find configs and splits: as the card lists them, or from folders and file names as `datasets` does."""
    listed = card.get("configs")
    layout: Layout = {}
    for config in listed if isinstance(listed, list) else []:
        splits = _listed(config.get("data_files"), names) if isinstance(config, dict) else {}
        if splits and isinstance(config.get("config_name"), str):
            layout[config["config_name"]] = splits
    if layout:
        return layout
    for name in names:
        *folders, file = name.split("/")
        config_name = folders[0] if folders and folders[0] not in ("data", *SPLITS) else "default"
        layout.setdefault(config_name, {}).setdefault(_split(file, folders), []).append(name)
    return layout


def _listed(data_files: Any, names: list[str]) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {}
    for item in data_files if isinstance(data_files, list) else [{"split": "train", "path": data_files}]:
        if isinstance(item, dict):
            patterns = item.get("path")
            for pattern in patterns if isinstance(patterns, list) else [patterns]:
                found = [n for n in names if isinstance(pattern, str) and fnmatchcase(n, pattern)]
                if found:
                    splits.setdefault(str(item.get("split", "train")), []).extend(found)
    return splits


def _split(file: str, folders: list[str]) -> str:
    for part in (*re.findall(r"[a-z]+", file.lower()), *reversed(folders)):
        word = str(_ALIASES.get(part, part))
        if word in SPLITS:
            return word
    return "train"


def _choose(there: Mapping[str, Any], given: str | None, repo_id: str, what: str, defaults: Iterable[str]) -> str:
    if given is not None and given in there:
        return given
    names = list(there)
    usual = [name for name in defaults if name in there] or (names if len(names) == 1 else [])
    if given is None and usual:
        return usual[0]
    words = f"has several {what}s" if given is None else f"has no {what} {quoted(given)}"
    shown = ", ".join(quoted(name) for name in names[:20])
    raise SpecError(
        f"'{repo_id}' {words}: give id:config:split, with one of {shown}.", {"dataset": f"{words}: {shown}"}
    )


def _within_limit(entries: list[Entry], repo_id: str) -> tuple[list[Entry], str]:
    """Take the first files that together stay below the limit, and say so for the card."""
    taken, size = [], 0
    for entry in sorted(entries):
        if size + entry.size > MAX_DOWNLOAD:
            break
        taken.append(entry)
        size += entry.size
    if not taken:
        raise SpecError(
            f"'{repo_id}': {quoted(entries[0].name)} has {entries[0].size / 1e6:.0f} MB, of which"
            f" {MAX_DOWNLOAD // 1_000_000} are downloaded at the most: choose another config, split or data set."
        )
    return taken, "" if len(taken) == len(entries) else f", first {len(taken)} of {len(entries)} files"


def _download(files: HubFiles, wanted: list[Entry], folder: Path, report: Report) -> Iterator[Path]:
    done, total = 0, sum(e.size for e in wanted)

    def tell(n: int) -> None:
        report.progress("downloading", done + n, total, "bytes")

    for entry in wanted:
        fetch_file(files, entry, folder, tell)
        done += entry.size
        yield folder / entry.name
    report.progress("downloading", done, total, "bytes")


def _rows(path: Path) -> Iterator[str]:
    if path.suffix.lower() == ".parquet":
        yield from _parquet_rows(path)
    elif path.suffix.lower() == ".jsonl":
        yield from _json_rows(path)
    else:
        yield path.read_text(encoding="utf-8-sig", errors="replace")


def _parquet_rows(path: Path) -> Iterator[str]:
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            texts = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
            column = _text_column(texts, schema.names, path.name)
            for batch in file.iter_batches(1024, columns=[column]):
                yield from (value or "" for value in batch.column(0).to_pylist())
    except (pa.ArrowException, OSError) as e:
        raise SpecError(f"{quoted(path.name)} cannot be read as Parquet: choose another data set.") from e


def _json_rows(path: Path) -> Iterator[str]:
    column = None
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as e:
                raise SpecError(f"{quoted(path.name)}, line {number}, is not JSON: choose another data set.") from e
            if not isinstance(row, dict):
                raise SpecError(f"{quoted(path.name)}, line {number}, is no JSON object: choose another data set.")
            column = column or _text_column([k for k, v in row.items() if isinstance(v, str)], list(row), path.name)
            value = row.get(column)
            yield value if isinstance(value, str) else ""


def _text_column(texts: list[str], columns: list[str], name: str) -> str:
    """Take `text`, or the only column of text there is."""
    if "text" in texts or len(texts) == 1:
        return "text" if "text" in texts else texts[0]
    shown = ", ".join(quoted(column) for column in columns[:20])
    raise SpecError(f"{quoted(name)} has no column 'text', only {shown}: choose a data set of plain text.")


def _write(target: Path, repo_id: str, rows: Iterator[str]) -> None:
    size = 0
    with target.open("w", encoding="utf-8", errors="replace", newline="") as out:
        for i, row in enumerate(rows):
            size += out.write(row if i == 0 else "\n\n" + row)
            if size > MAX_TEXT:
                raise SpecError(f"'{repo_id}' unpacks to more than {MAX_TEXT} characters: choose a smaller split.")
