"""Several layouts of one calibration: `layouts: [gptq, awq]` in a recipe stands for a stage in each of them."""

import re
from collections.abc import Sequence
from typing import Any

from backend.errors import SpecError
from backend.quantize.layouts import LAYOUTS

KEY = "layouts"
"""What a stage of a recipe may say in the place of `layout`."""


def spread(stages: Sequence[Any], where: str) -> list[tuple[int, Any]]:
    """Return the stages of a recipe as it is run, each with the place where it was given.

    Args:
        stages: As given.
        where: Put before each field in errors.

    Raises:
        SpecError: Layouts that are no list of different ones, or stand beside `layout`.
    """
    return [(at, one) for at, stage in enumerate(stages) for one in _in_each(stage, f"{where}stages[{at}].{KEY}")]


def _in_each(stage: Any, field: str) -> list[Any]:
    """Return a stage once for each layout; the first finds grids that the readers of all others take."""
    if not isinstance(stage, dict) or KEY not in stage:
        return [stage]
    names = stage[KEY]
    if not isinstance(names, list) or not names or any(names.count(name) > 1 for name in names):
        raise _fault(field, "must be a list of different layouts, as in [gptq, awq]")
    if "layout" in stage:
        raise _fault(field, "says it of several: leave layout out")
    rest = {key: value for key, value in stage.items() if key != KEY}
    lowest = {name: layout.LOWEST for name, layout in LAYOUTS.items()}
    return [{**rest, "layout": name} for name in sorted(names, key=lambda name: -lowest.get(str(name), 0))]


def _fault(field: str, text: str) -> SpecError:
    return SpecError(f"{field}: {text}", {field: text})


def as_given(error: SpecError, places: Sequence[int]) -> SpecError:
    """Return what is wrong with a recipe that is run, by the places where its stages were given.

    Args:
        error: Names stages as they are run.
        places: Of each of them.
    """

    def given(text: str) -> str:
        return re.sub(
            r"(?<=stages\[)\d{1,6}(?=\])", lambda at: str(dict(enumerate(places)).get(int(at[0]), at[0])), text
        )

    text = "\n".join(dict.fromkeys(given(str(error)).splitlines()))
    return SpecError(text, {given(field): given(fault) for field, fault in error.faults.items()})
