"""What the steps of a job do: one module a step, whose STEP says everything that is known of it; see Step.

A module is imported when its step is asked for: a worker does one step and imports what that one needs.
"""

from collections.abc import Iterator, Mapping
from pkgutil import resolve_name
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backend.stages.step import Step

_PLACES = {
    "fetch": "fetch:STEP",
    "convert": "convert:STEP",
    "finetune": "finetune:STEP",
    "merge": "merge:STEP",
    "quantize": "quantize:STEP",
    "evaluate": "evaluate:STEP",
    "check": "check:STEP",
    "adopt": "adopt:STEP",
    "publish": "publish:STEP",
    "stream": "stream.stream:STEP",
    "examine": "preview:EXAMINE",
    "render": "preview:RENDER",
}


class _Steps(Mapping[str, "Step"]):
    def __getitem__(self, name: str) -> "Step":
        step: Step = resolve_name(f"{__name__}.{_PLACES[name]}")
        return step

    def __iter__(self) -> Iterator[str]:
        return iter(_PLACES)

    def __len__(self) -> int:
        return len(_PLACES)


STEPS: Mapping[str, "Step"] = _Steps()
"""Every step by its name."""
