"""Findings: what is said of a data set, which rows it is about, and the option that decides it."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from pydantic import Field

from backend.errors import SpecError
from backend.options import Frozen
from backend.strict_json import quoted

SHOWN = 10  # row numbers that a finding lists
MAX_GROUPS = 100  # different faults; a file can have a new one in each row
MAX_FAULTS = 20  # sentences in one error


class Finding(Frozen):
    """One thing that is said of a data set."""

    kind: str = Field(description="encoding, header, null, ragged, …")
    text: str = Field(description="One sentence: where, what, and what can be done.")
    rows: tuple[int, ...] = Field((), description="The first of the rows that it is about, counted from 1.")
    count: int = Field(0, description="How many rows it is about.")
    option: str | None = Field(None, description="The field of DatasetOptions that decides it.")
    asks: bool = Field(False, description="Whether nothing starts before that option is given.")


@dataclass
class _Group:
    """Rows with the same fault."""

    text: str
    remedy: str
    each: bool
    count: int = 0
    rows: list[int] = field(default_factory=list)

    def add(self, row: int) -> None:
        self.count += 1
        if len(self.rows) < SHOWN:
            self.rows.append(row)

    def words(self, total: int) -> str:
        """Say it: `'answer' is null in 2 of 10 rows (rows 3, 7)`, or the first row's fault and how many follow."""
        if self.each:
            return self.text + (f", and {self.count - 1} more are like it" if self.count > 1 else "")
        share = f"all {total} rows" if self.count == total and total > 1 else f"{self.count} of {total} rows"
        return f"{self.text} in {share} ({listed(self.rows, self.count)})"


def _group(groups: dict[tuple[str, str], _Group], kind: str, new: _Group) -> _Group:
    """Return the group that a row belongs to; where there are too many, all further ones are one."""
    key = kind, "" if new.each else new.text
    if key not in groups and len(groups) >= MAX_GROUPS:
        return groups.setdefault((kind, "…"), replace(new, text="something else of this kind is the matter"))
    return groups.setdefault(key, new)


def listed(rows: Iterable[int], count: int) -> str:
    """List row numbers: `rows 3, 7, …`."""
    numbers = list(rows)
    return ("row " if count == 1 else "rows ") + ", ".join(map(str, numbers)) + (", …" if count > len(numbers) else "")


class Ledger:
    """Collects what is found while rows are read.

    Args:
        name: The data set's, put before each sentence.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.said: dict[tuple[str, str], Finding] = {}
        self.window: tuple[int, int | None] = (0, None)
        """Rows before the first and after the second number are not counted."""
        self._before, self._within = 0, ""
        self._faulty: dict[tuple[str, str], _Group] = {}
        self._noted: dict[tuple[str, str], _Group] = {}

    def part(self, before: int, within: str) -> "Ledger":
        """Return a ledger that writes into this one, for a file whose rows follow `before` others.

        Args:
            before: Rows of the files before it.
            within: The file's name, where it is one of several.
        """
        ledger = copy.copy(self)
        ledger._before, ledger._within = before, within
        return ledger

    def say(self, kind: str, text: str, option: str | None = None, asks: bool = False, count: int = 0) -> None:
        """Say something of the whole data set, once."""
        sentence = f"{quoted(self.name)}: {text}"
        self.said.setdefault((kind, text), Finding(kind=kind, text=sentence, option=option, asks=asks, count=count))

    def faulty(self, kind: str, row: int, text: str, remedy: str, each: bool = False) -> None:
        """Say why a row cannot be used.

        Args:
            kind: Rows of one kind and text are told together.
            row: Its number.
            text: What is wrong, followed by "in 2 of 10 rows"; or, with `each`, a sentence about this row.
            remedy: What can be done to the file: "fill them in".
            each: Whether the text is about this row alone; the first one stands for its kind.
        """
        row += self._before
        start, stop = self.window
        if row <= start or (stop is not None and row > stop):
            return
        if each and self._within:
            text = f"in {quoted(self._within)}, {text}"
        _group(self._faulty, kind, _Group(text, remedy, each)).add(row)

    def noted(self, kind: str, row: int, text: str) -> None:
        """Count a row that is used, but not quite as it stands: `'score' has numbers, read as text,`."""
        _group(self._noted, kind, _Group(text, "", False)).add(row)

    def findings(self, total: int, drop: bool) -> tuple[Finding, ...]:
        """Return everything found, questions first.

        Args:
            total: Rows read.
            drop: Whether faulty rows are left out.
        """
        found = list(self.said.values())
        for (kind, _), group in self._faulty.items():
            after = "left out." if drop else f"{group.remedy}, or set on_fault to drop to leave such rows out."
            text = f"{quoted(self.name)}: {group.words(total)}: {after}"
            rows = tuple(group.rows)
            found.append(Finding(kind=kind, text=text, rows=rows, count=group.count, option="on_fault", asks=not drop))
        for (kind, _), group in self._noted.items():
            text = f"{quoted(self.name)}: {group.words(total)}."
            found.append(Finding(kind=kind, text=text, rows=tuple(group.rows), count=group.count))
        return tuple(sorted(found, key=lambda finding: not finding.asks))

    def reasons(self) -> dict[str, int]:
        """Count the rows that cannot be used by the kind of their fault."""
        counts: dict[str, int] = {}
        for (kind, _), group in self._faulty.items():
            counts[kind] = counts.get(kind, 0) + group.count
        return counts

    @property
    def count(self) -> int:
        """Rows that cannot be used."""
        return sum(self.reasons().values())

    def unusable(self, total: int) -> SpecError:
        """Return the error for a data set of which no row is left."""
        why = [f"{group.words(total)}: {group.remedy}." for group in self._faulty.values()]
        if not why:
            return fault(self.name, "Its rows have no columns. Give each value a name.")
        head = f"{quoted(self.name)}: None of the {total} rows can be used." if total > 1 else f"{quoted(self.name)}:"
        return SpecError(f"{head} {' '.join(_capital(text) for text in why[:MAX_FAULTS])}")


def fault(name: str, text: str, option: str | None = None) -> SpecError:
    """Return the error for a file that cannot be read at all: `'rows.csv': The file is empty. …`."""
    sentence = f"{quoted(name)}: {text}"
    return SpecError(sentence, {option: text} if option else None)


def refusal(findings: Iterable[Finding]) -> SpecError:
    """Put questions into one error, a line each, with the option that answers it."""
    asked = [finding for finding in findings if finding.asks]
    lines = [finding.text for finding in asked[:MAX_FAULTS]]
    if len(asked) > MAX_FAULTS:
        lines.append(f"… and {len(asked) - MAX_FAULTS} more.")
    faults: dict[str, str] = {}
    for finding in asked:
        if finding.option:
            faults.setdefault(finding.option, finding.text)
    return SpecError("\n".join(lines), faults)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
