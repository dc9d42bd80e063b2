"""Loading: a source of rows is read whole, everything about it is said, and only then are its samples given.

Validation rows are those with the smallest hashes: the choice needs no seed, stays when rows are added elsewhere, and
puts rows that are the same on the same side.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from itertools import islice
from typing import NamedTuple

from pydantic import ConfigDict, Field

from backend.data.columns import Column, Mapping, describe, find_mapping, repeating
from backend.data.convert import Converter
from backend.data.files.row import Row
from backend.data.files.rows import Rows, Source
from backend.data.findings import Finding, Ledger, refusal
from backend.data.kept import Kept
from backend.data.options import DatasetOptions
from backend.data.samples import Sample
from backend.options import Frozen
from backend.strict_json import quoted

HEAD = 100  # rows that the columns are recognized by
PREVIEW = 10  # samples


class Examination(Frozen):
    """Everything that is to be said of a data set before it is learned from."""

    model_config = ConfigDict(str_strip_whitespace=False)  # samples are shown as they are

    name: str
    formats: tuple[str, ...] = Field(description="Of the files: csv, jsonl, …")
    encodings: tuple[str, ...]
    delimiter: str | None = Field(description="Of CSV files, as DatasetOptions names it.")
    header: bool | None = Field(description="Whether the first row of a CSV file names the columns.")
    columns: tuple[Column, ...]
    mapping: Mapping | None = Field(description="None where it must be asked.")
    rows: int = Field(description="Rows read.")
    dropped: dict[str, int] = Field(description="Rows without a sample, by reason.")
    train: int = Field(description="Samples to learn from.")
    validation: int = Field(description="Samples to measure on.")
    repeated: int = Field(description="Rows that are the same as an earlier one.")
    findings: tuple[Finding, ...] = Field(description="Questions first.")
    preview: tuple[Sample, ...] = Field(description="The first samples.")

    @property
    def questions(self) -> tuple[Finding, ...]:
        """What must be answered by an option before anything starts."""
        return tuple(finding for finding in self.findings if finding.asks)


class _Survey(NamedTuple):
    """One source, read through."""

    rows: Rows
    mapping: Mapping | None
    ledger: Ledger
    columns: tuple[Column, ...]
    total: int
    samples: Counter[int]  # digest → rows
    kept: Kept
    preview: tuple[Sample, ...]


class Dataset:
    """Samples of a data set in which everything was checked; they can be read again and again."""

    def __init__(self, options: DatasetOptions, surveys: tuple[_Survey, ...], held_out: Set[int]) -> None:
        self._options = options
        self._surveys = surveys
        self._held_out = held_out
        self.examination = _examination(options, surveys, held_out)

    @property
    def drops(self) -> bool:
        """Whether rows that cannot be used are left out."""
        return self._options.on_fault == "drop"

    def train(self) -> Iterator[Sample]:
        """Return the samples to learn from, in the order of their rows."""
        return (s for s in self._samples(self._surveys[0]) if s.digest not in self._held_out)

    def validation(self) -> Iterator[Sample]:
        """Return the samples to measure on; there may be none."""
        if len(self._surveys) > 1:
            return self._samples(self._surveys[1])
        return (s for s in self._samples(self._surveys[0]) if s.digest in self._held_out)

    def _samples(self, survey: _Survey) -> Iterator[Sample]:
        seen = set[int]()
        for sample in survey.kept.read():
            if self._options.drop_duplicates:
                if sample.digest in seen:
                    continue
                seen.add(sample.digest)
            yield sample


def examine(source: Source, options: DatasetOptions, validation: Source | None = None) -> Examination:
    """Read a data set through and say everything about it; questions are among the findings.

    Args:
        source: Its files.
        options: As far as they are known.
        validation: The files of a validation set of its own.

    Raises:
        SpecError: A file cannot be read at all, or none of its rows can be used.
    """
    return _read(source, options, validation).examination


def load(source: Source, options: DatasetOptions, validation: Source | None = None) -> Dataset:
    """Read a data set through and give its samples; see examine().

    Raises:
        SpecError: It cannot be used, or a question is open: one line each, with the option that answers it.
    """
    dataset = _read(source, options, validation)
    if dataset.examination.questions:
        raise refusal(dataset.examination.findings)
    return dataset


def _read(source: Source, options: DatasetOptions, validation: Source | None) -> Dataset:
    surveys = tuple(_survey(each, options) for each in (source, validation) if each)
    held_out = _held_out(surveys[0], options)
    for survey in surveys:
        _judge_repeats(survey, options)
    if len(surveys) > 1:
        _judge_overlap(surveys[0], surveys[1], options)
    return Dataset(options, surveys, held_out)


def _survey(source: Source, options: DatasetOptions) -> _Survey:
    ledger = Ledger(source.name)
    rows = Rows(source, options, ledger)
    head = list(islice(rows.read(Ledger(source.name)), HEAD))
    columns = describe(head, rows.columns)
    readable = any(row.values for row in head)
    # columns are asked for when it is known what they are called
    unnamed = any(finding.kind == "header" for finding in ledger.said.values())
    hint = " If the first row is no header, set header to false." if rows.header and options.header is None else ""
    asked = Ledger(source.name) if unnamed else ledger
    mapping = find_mapping(columns, options, asked, hint) if readable else None
    if mapping:
        _check_left_out(mapping, rows, ledger)
        mapping = _told_apart(mapping, head, ledger)
    unclear = any(f.asks and f.kind in ("columns", "json_text", "binary") for f in ledger.said.values())
    converter = Converter(mapping, options, ledger) if mapping and not unclear else None
    total = 0
    names = dict[str, None]()
    samples = Counter[int]()
    preview = list[Sample]()
    kept = Kept()
    for row in rows.read(ledger):
        total += 1
        if row.values is not None and not row.values.keys() <= names.keys():
            names |= dict.fromkeys(row.values)
        sample = converter.sample(row) if converter else None
        if sample:
            samples[sample.digest] += 1
            kept.add(sample)
            if len(preview) < PREVIEW:
                preview.append(sample)
    if (converter or not readable) and not samples:
        raise ledger.unusable(total)
    if mapping:
        _say_ignored(mapping, names, ledger)
    return _Survey(rows, mapping, ledger, columns, total, samples, kept, tuple(preview))


def _told_apart(mapping: Mapping, head: Iterable[Row], ledger: Ledger) -> Mapping:
    """Note where one side of a pair holds the other too, which is not to be read twice."""
    whole = repeating(mapping, head)
    if whole:
        other = "assistant" if whole == "user" else "user"
        names = quoted(getattr(mapping, whole)), quoted(getattr(mapping, other))
        ledger.say("repeats", f"{names[0]} holds the text of {names[1]} in every row: it is read once.")
    return mapping.model_copy(update={"whole": whole})


def _check_left_out(mapping: Mapping, rows: Rows, ledger: Ledger) -> None:
    for name in mapping.used:
        kind = rows.left_out.get(name)
        if kind and "binary" in kind:
            text = f"The column {quoted(name)} is binary: set decode_binary to true if it is text, or name another."
            ledger.say("binary", text, "decode_binary", asks=True)
        elif kind:
            text = f"The column {quoted(name)} is {kind[:80]}, which is not read: name another column."
            ledger.say("columns", text, asks=True)


def _say_ignored(mapping: Mapping, there: Iterable[str], ledger: Ledger) -> None:
    ignored = [name for name in there if name not in mapping.used]
    if ignored:
        names = ", ".join(map(quoted, ignored[:20])) + (" …" if len(ignored) > 20 else "")
        ledger.say("ignored", f"Columns that are not used: {names}.", count=len(ignored))


def _held_out(survey: _Survey, options: DatasetOptions) -> frozenset[int]:
    """Choose the validation samples by their digests."""
    size, there = options.validation_size, len(survey.samples)
    if not size or not there:
        return frozenset()
    wanted = max(1, round(size * there)) if size < 1 else int(size)
    if wanted >= there:
        text = f"validation_size keeps out {wanted} of {there} different rows: give less, some must be learned from."
        survey.ledger.say("validation", text, "validation_size", asks=True)
        return frozenset()
    return frozenset(heapq.nsmallest(wanted, survey.samples))


def _judge_repeats(survey: _Survey, options: DatasetOptions) -> None:
    """Ask about data that teaches one thing only; count what is repeated."""
    count, distinct = survey.samples.total(), len(survey.samples)
    if not count or (options.on_fault == "stop" and survey.ledger.reasons()):
        return  # faulty rows are asked about first
    if distinct == 1:
        text = f"All {count} rows are the same" if count > 1 else "There is only 1 row"
        after = "." if options.allow_identical else ": give more rows, or set allow_identical to true to go on."
        survey.ledger.say("identical", text + after, "allow_identical", not options.allow_identical, count)
    elif count > distinct:
        after = "left out" if options.drop_duplicates else "set drop_duplicates to true to leave them out"
        text = f"{count - distinct} of {count} rows repeat an earlier one: {after}."
        survey.ledger.say("repeated", text, "drop_duplicates", count=count - distinct)


def _judge_overlap(train: _Survey, validation: _Survey, options: DatasetOptions) -> None:
    """Ask when the figures would be measured on what was learned."""
    shared = sum(count for digest, count in validation.samples.items() if digest in train.samples)
    if shared:
        text = f"{shared} of {validation.samples.total()} validation rows are also trained on"
        after = "." if options.allow_identical else ": give other rows, or set allow_identical to true to go on."
        validation.ledger.say("overlap", text + after, "allow_identical", not options.allow_identical, shared)


def _examination(options: DatasetOptions, surveys: tuple[_Survey, ...], held_out: Set[int]) -> Examination:
    first = surveys[0]
    counted = [len(s.samples) if options.drop_duplicates else s.samples.total() for s in surveys]
    kept_out = sum(1 if options.drop_duplicates else first.samples[digest] for digest in held_out)
    findings = [f for s in surveys for f in s.ledger.findings(s.total, options.on_fault == "drop")]
    repeated = first.samples.total() - len(first.samples)
    dropped = first.ledger.reasons()
    if options.drop_duplicates and repeated:
        dropped["repeated"] = repeated
    return Examination(
        name=first.rows.name,
        formats=tuple(dict.fromkeys(file.format for file in first.rows.files)),
        encodings=tuple(dict.fromkeys(file.encoding for file in first.rows.files if file.format != "parquet")),
        delimiter=first.rows.delimiter,
        header=first.rows.header,
        columns=first.columns,
        mapping=first.mapping,
        rows=first.total,
        dropped=dropped,
        train=counted[0] - kept_out,
        validation=counted[1] if len(surveys) > 1 else kept_out,
        repeated=repeated,
        findings=tuple(sorted(findings, key=lambda finding: not finding.asks)),
        preview=first.preview,
    )
