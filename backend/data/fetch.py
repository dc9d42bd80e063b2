"""Fetch: bring a data set's rows to this machine; needs the network and the token, unlike what reads them."""

from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import TypeAdapter

from backend.data.demo import NAME, write_demo
from backend.data.files.rows import Source
from backend.data.options import DEMO_DATASET, DatasetOptions, is_file
from backend.data.slices import parse_split
from backend.data.synonyms import SUFFIXES
from backend.disk import read_whole, write_whole
from backend.errors import SpecError
from backend.hub.datasets import Wanted, fetch_files, open_dataset
from backend.progress import Report
from backend.strict_json import quoted

_SUFFIXES = (
    *(s for s in SUFFIXES if s != ".md"),
    *(s + ".gz" for s in SUFFIXES if s not in (".md", ".parquet", ".pq")),
)


Options = TypeVar("Options", bound=DatasetOptions)


class Sources(NamedTuple):
    """What load() reads."""

    train: Source
    validation: Source | None


_SOURCES = TypeAdapter(Sources)
SOURCES = "sources.json"


def write_sources(folder: Path, sources: Sources) -> None:
    """Keep in a folder where the rows lie, for who reads them; the folder may be moved."""

    def within(source: Source) -> Source:
        files = (f.relative_to(folder) if f.is_relative_to(folder) else f for f in source.files)
        return source.model_copy(update={"files": tuple(files)})

    there = Sources(within(sources.train), sources.validation and within(sources.validation))
    write_whole(folder / SOURCES, _SOURCES.dump_json(there))


def read_sources(folder: Path) -> Sources:
    """Return what write_sources() kept in a folder.

    Raises:
        SpecError: It is not there, or damaged.
    """

    def found(source: Source) -> Source:
        return source.model_copy(update={"files": tuple(folder / file for file in source.files)})

    there = read_whole(folder / SOURCES, Sources)
    if there is None:
        raise SpecError(f"'{folder.name}/{SOURCES}' cannot be read: retry, which fetches the rows again.")
    return Sources(found(there.train), there.validation and found(there.validation))


def pin(options: Options, token: str | None) -> Options:
    """Return the options with the commit that the data set's branch or tag means now, before a job starts.

    Raises:
        HubError: There is no such data set or revision, or the Hub could not be reached.
    """
    from backend.hub import client

    if options.dataset == DEMO_DATASET or is_file(options.dataset):
        return options
    commit = client.commit_of(client.dataset_info(options.dataset, options.revision, token), options.dataset)
    return options.model_copy(update={"revision": commit})


def splits_of(options: DatasetOptions, token: str | None) -> dict[str, tuple[str, ...]]:
    """Return the splits of each config that there is to choose from; none where the rows do not come from the Hub.

    Raises:
        SpecError: There is nothing that can be read.
        HubError: The Hub refused or could not be reached.
    """
    if options.dataset == DEMO_DATASET or is_file(options.dataset):
        return {}
    found = open_dataset(Wanted(options.dataset, revision=options.revision), _SUFFIXES, token)
    return {config: tuple(splits) for config, splits in found.layout.items()}


def fetch_dataset(options: DatasetOptions, folder: Path, token: str | None, report: Report) -> Sources:
    """Bring the rows, and those of a validation set of its own.

    Args:
        options: Which; see pin().
        folder: Where files are written that do not lie here yet.
        token: The caller's Hub token.
        report: Receives the bytes.

    Raises:
        SpecError: There is no such config or split; what there is instead.
        HubError: The Hub refused or could not be reached.
    """
    train = _source(options, options.dataset, options.split, folder / "train", token, report)
    if not (options.validation_dataset or options.validation_split):
        return Sources(train, None)
    dataset = options.validation_dataset or options.dataset
    other = options if dataset == options.dataset else options.model_copy(update={"config": None, "revision": None})
    try:
        kept_out = _source(other, dataset, options.validation_split, folder / "validation", token, report)
    except SpecError as e:
        field = "validation_dataset" if options.validation_dataset else "validation_split"
        raise SpecError(f"Of the validation rows: {e}", {field: str(e)} if e.faults else None) from e
    return Sources(train, kept_out)


def _source(
    options: DatasetOptions, dataset: str, split: str | None, folder: Path, token: str | None, report: Report
) -> Source:
    name, part = parse_split(split)
    if name not in (None, "train") and (is_file(dataset) or dataset == DEMO_DATASET):
        text = f"has no splits: give a part of its rows alone, such as [:200], or leave out {quoted(name)}"
        raise SpecError(f"{quoted(Path(dataset).name)} {text}.", {"split": text})
    if is_file(dataset):
        return Source(name=Path(dataset).name, files=(Path(dataset),), split=split)
    folder.mkdir(parents=True, exist_ok=True)
    if dataset == DEMO_DATASET:
        target = folder / "demo.jsonl"
        write_demo(target)
        return Source(name=NAME, files=(target,), split=split)
    rows = None if part.needs_total else part.bounds(None)[1]
    wanted = Wanted(dataset, options.config, name, options.revision, part.stop is not None, rows)
    fetched = fetch_files(wanted, _SUFFIXES, folder, token, report)
    return Source(name=fetched.name, files=fetched.files, split=split, repo_id=fetched.repo_id, revision=fetched.commit)
