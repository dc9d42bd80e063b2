"""Data sets on the Hub: their configs, splits and files, at one commit; Parquet, CSV, JSON or text, never a script."""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, NamedTuple

from backend.errors import HubError, SpecError
from backend.hub.files import Entry, HubFiles
from backend.hub.first_rows import fetch_rows
from backend.hub.ids import parse_repo_id
from backend.hub.transfer import check_disk, fetch_file
from backend.progress import Report
from backend.strict_json import quoted

MAX_ROWS_DOWNLOAD = 2_000_000_000  # bytes of files that rows are read from
ROW_BYTES = 10_000  # of a row, generously
CONVERTED = "refs/convert/parquet"
"""The branch in which the Hub keeps small data sets as Parquet: config/split/0000.parquet."""

SPLITS = ("test", "validation", "train")
_ALIASES = {"valid": "validation", "val": "validation", "dev": "validation", "eval": "validation", "training": "train"}
_NO_DATA = re.compile(r"(readme|license|notice|requirements|dataset_infos?|config|\.)[^/]*", re.IGNORECASE)

Layout = dict[str, dict[str, list[str]]]
"""Config → split → names of files."""


class Wanted(NamedTuple):
    """What is asked for; what is None is chosen where there is one choice."""

    dataset: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    part: bool = False  # whether a part will do, where all rows are too many
    rows: int | None = None  # how many of the first ones will do, where that is known


class Fetched(NamedTuple):
    """What came."""

    name: str  # for a card: `id (config, split, commit abc1234)`
    files: tuple[Path, ...]
    repo_id: str
    commit: str


class HubDataset(NamedTuple):
    """A data set at a commit."""

    wanted: Wanted
    files: HubFiles
    layout: Layout

    def entries_of(self, config: str, split: str) -> list[Entry]:
        """Return a split's files, in the order of their names."""
        names = set(self.layout[config][split])
        return sorted(entry for entry in self.files.entries() if entry.name in names)

    def words(self, how: str) -> str:
        """Begin a refusal: `'id' … how`; see choose()."""
        return f"'{self.files.repo_id}' {{what}}: {how} {{names}}."


def fetch_files(wanted: Wanted, suffixes: tuple[str, ...], folder: Path, token: str | None, report: Report) -> Fetched:
    """Download the files of a split.

    Args:
        wanted: Which.
        suffixes: Of the files that can be read.
        folder: Where they are written, under their names.
        token: The caller's Hub token.
        report: Receives the bytes.

    Raises:
        SpecError: There is no such config or split, or nothing that can be read; what there is instead.
        HubError: The Hub refused or could not be reached.
    """
    found = open_dataset(wanted, suffixes, token)
    config = choose(found.layout, wanted.config, "config", ("default",), found.words("set config to one of"))
    split = choose(found.layout[config], wanted.split, "split", ("train",), found.words("set split to"), sure=True)
    repo_id, entries = found.files.repo_id, found.entries_of(config, split)
    size = sum(entry.size for entry in entries)
    if size > MAX_ROWS_DOWNLOAD and not wanted.part:
        raise SpecError(
            f"'{repo_id}' ({config}, {split}) has {size / 1e9:.1f} GB, {MAX_ROWS_DOWNLOAD / 1e9:.0f} GB at most:"
            f" take a part, such as {split}[:10000], in split.",
            {"split": f"has {size / 1e9:.1f} GB: take a part, such as {split}[:10000]"},
        )
    files, note = _fetched(found, entries, folder, report)
    name = f"{repo_id} ({config}, {split}{note}, commit {found.files.commit[:7]})"
    if note:
        report.warn(
            f"Of '{repo_id}' only the{note.removeprefix(',')} are read: the others are above the download limit."
        )
    return Fetched(name, files, repo_id, found.files.commit)


def _fetched(found: HubDataset, entries: list[Entry], folder: Path, report: Report) -> tuple[tuple[Path, ...], str]:
    """Bring a split's files, or as many as the rows that are wanted need, and say for the card which."""
    repo_id, rows = found.files.repo_id, found.wanted.rows
    if rows:
        check_disk(folder, 2 * min(sum(entry.size for entry in entries), rows * ROW_BYTES), f"download '{repo_id}'")
        came, all_there = fetch_rows(found.files, entries, rows, MAX_ROWS_DOWNLOAD, folder, report)
        if came:
            return tuple(came), "" if all_there else f", first {len(came)} of {len(entries)} files"
    taken, note = within_limit(entries, repo_id, MAX_ROWS_DOWNLOAD)
    check_room(folder, taken, repo_id)
    return tuple(download(found.files, taken, folder, report)), note


def open_dataset(wanted: Wanted, suffixes: tuple[str, ...], token: str | None) -> HubDataset:
    """Look up a data set's configs, splits and files.

    Raises:
        SpecError: The name is none, or there is no file that can be read.
        HubError: The Hub refused or could not be reached.
    """
    from backend.hub import client

    try:
        repo_id = parse_repo_id(wanted.dataset)
    except ValueError as e:
        raise SpecError(f"dataset: {e}", {"dataset": str(e)}) from e
    info = client.dataset_info(repo_id, wanted.revision, token)
    files = HubFiles(repo_id, client.commit_of(info, repo_id), token, "dataset")
    client.check_access(repo_id, token, "dataset")
    there = [e.name for e in files.entries() if ".." not in e.name]
    names = [name for name in there if name.lower().endswith(suffixes) and not _NO_DATA.fullmatch(name.split("/")[-1])]
    card: Mapping[str, Any] = info.card_data.to_dict() if info.card_data else {}  # type: ignore[no-untyped-call]
    layout = _layout(names, card)
    if not layout:
        raise _nothing(repo_id, there, suffixes, token)
    return HubDataset(wanted, files, layout)


def _nothing(repo_id: str, there: list[str], suffixes: tuple[str, ...], token: str | None) -> SpecError:
    """Return the error for a data set without files that can be read; a script is named and never run."""
    kinds = ", ".join(suffixes)
    script = next((name for name in there if name.endswith(".py")), None)
    if not script:
        return SpecError(f"'{repo_id}' has no files that can be read ({kinds}): choose another data set.")
    if _has_converted(repo_id, token):
        way = f"set revision to {CONVERTED}, where the Hub keeps its rows as Parquet"
    else:
        way = f"choose another, or ask its author for the Parquet branch {CONVERTED}"
    return SpecError(f"'{repo_id}' has only a loading script, {quoted(script)}, which is never run: {way}.")


def _has_converted(repo_id: str, token: str | None) -> bool:
    from backend.hub import client

    try:
        client.dataset_info(repo_id, CONVERTED, token)
    except HubError:
        return False
    return True


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
    suffixes = Counter(_suffix(name) for name in names)
    for name in names:
        if suffixes[_suffix(name)] < max(suffixes.values()):
            continue  # a few files of another kind beside the data, such as a list of labels
        *folders, file = name.split("/")
        config_name = folders[0] if folders and folders[0] not in ("data", *SPLITS) else "default"
        layout.setdefault(config_name, {}).setdefault(_split(file, folders), []).append(name)
    return layout


def _listed(data_files: Any, names: list[str]) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {}
    there = sorted(names)
    for item in data_files if isinstance(data_files, list) else [{"split": "train", "path": data_files}]:
        if isinstance(item, dict):
            patterns = item.get("path")
            for pattern in patterns if isinstance(patterns, list) else [patterns]:
                found = _matching(there, pattern) if isinstance(pattern, str) else []
                if found:
                    splits.setdefault(str(item.get("split", "train")), []).extend(found)
    return splits


def _matching(there: list[str], pattern: str) -> list[str]:
    """Return the names that match a pattern, looking only at those that begin like it: C4 has 70,000 files."""
    begins = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    first = bisect_left(there, begins)
    likely = takewhile(lambda name: name.startswith(begins), islice(there, first, None))
    return [name for name in likely if fnmatchcase(name, pattern)]


def _suffix(name: str) -> str:
    return Path(name.lower().removesuffix(".gz")).suffix


def _split(file: str, folders: list[str]) -> str:
    if len(folders) == 2 and re.fullmatch(r"\d+\.parquet", file):
        return folders[1]  # the Hub's own conversion, whose splits may have any name
    for part in (*re.findall(r"[a-z]+", file.lower()), *reversed(folders)):
        word = str(_ALIASES.get(part, part))
        if word in SPLITS:
            return word
    return "train"


def choose(
    there: Mapping[str, Any], given: str | None, what: str, usual: Iterable[str], words: str, *, sure: bool = False
) -> str:
    """Choose a config or split: the one given, the first usual one, or the only one there is.

    Args:
        there: What there is to choose from.
        given: What was asked for.
        what: "config" or "split".
        usual: Taken without asking.
        words: The refusal, with {what} and {names} to fill in.
        sure: Whether even the only one is asked for if it is not a usual one.

    Raises:
        SpecError: There is none or more than one; their names.
    """
    if given is not None and given in there:
        return given
    names = list(there)
    found = [name for name in usual if name in there] or (names if len(names) == 1 and not sure else [])
    if given is None and found:
        return found[0]
    several = f"has several {what}s" if len(names) > 1 else f"has only the {what} {quoted(names[0])}"
    text = several if given is None else f"has no {what} {quoted(given)}"
    shown = ", ".join(quoted(name) for name in names[:20])
    raise SpecError(words.format(what=text, names=shown), {what: f"{text}: {shown}", "dataset": f"{text}: {shown}"})


def within_limit(entries: list[Entry], repo_id: str, limit: int) -> tuple[list[Entry], str]:
    """Take the first files that together stay below the limit, and say so for the card."""
    taken, size = [], 0
    for entry in sorted(entries):
        if size + entry.size > limit:
            break
        taken.append(entry)
        size += entry.size
    if not taken:
        raise SpecError(
            f"'{repo_id}': {quoted(entries[0].name)} has {entries[0].size / 1e6:.0f} MB, of which"
            f" {limit // 1_000_000} are downloaded at most: choose another config, split or data set."
        )
    return taken, "" if len(taken) == len(entries) else f", first {len(taken)} of {len(entries)} files"


def check_room(folder: Path, wanted: list[Entry], repo_id: str) -> None:
    """Refuse what does not fit on the disk, unpacked or copied once."""
    check_disk(folder, 2 * sum(e.size for e in wanted), f"download '{repo_id}'")


def download(files: HubFiles, wanted: list[Entry], folder: Path, report: Report) -> Iterator[Path]:
    """Download files one by one, giving each path as it is there."""
    done, total = 0, sum(e.size for e in wanted)

    def tell(n: int) -> None:
        report.progress("downloading", done + n, total, "bytes")

    for entry in wanted:
        fetch_file(files, entry, folder, tell)
        done += entry.size
        yield folder / entry.name
    report.progress("downloading", done, total, "bytes")
