"""Splits and slices as `datasets` writes them: `train`, `train[:200]`, `test[10%:20%]`, `[-50:]`."""

import re
from typing import NamedTuple

_SPLIT = re.compile(r"(?P<name>[\w.-]*)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


class Slice(NamedTuple):
    """A part of the rows, in their order; a bound is a row, counted from the end if negative, or a percentage."""

    start: str | None = None
    stop: str | None = None

    @property
    def needs_total(self) -> bool:
        """Whether the rows must be counted before the part is known."""
        return any(bound is not None and (bound.endswith("%") or bound.startswith("-")) for bound in self)

    def bounds(self, total: int | None) -> tuple[int, int | None]:
        """Return the first row and the one after the last, counted from 0; None where there is no end.

        Args:
            total: Rows there are; needed where needs_total says so.
        """
        start = 0 if self.start is None else _place(self.start, total)
        return start, None if self.stop is None else _place(self.stop, total)


def _place(bound: str, total: int | None) -> int:
    if bound.endswith("%"):
        assert total is not None
        share = int(bound[:-1])
        return round(total * (share + 100 if share < 0 else share) / 100)  # `datasets` rounds to the closest row
    row = int(bound)
    return max(0, row + (total or 0)) if row < 0 else row


def parse_split(text: str | None) -> tuple[str | None, Slice]:
    """Read a split's name and slice; either may be left out.

    Raises:
        ValueError: It is neither.
    """
    found = _SPLIT.fullmatch((text or "").replace(" ", ""))
    if not found:
        raise ValueError(f"{(text or '')[:80]!r} is no split: write it as train, train[:200] or train[10%:20%]")
    part = Slice(found["start"], found["stop"])
    for bound in part:
        if bound and bound.endswith("%") and abs(int(bound[:-1])) > 100:
            raise ValueError(f"{bound} is more than all rows: give a percentage from 0% to 100%")
    return found["name"] or None, part
