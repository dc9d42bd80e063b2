"""Step: what the module of each step says of it; Planned and Need: what it is estimated from, and what it needs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from backend.models.facts import ModelFacts
from backend.progress import Report
from backend.recipes import Recipe
from backend.stages.work import Work

if TYPE_CHECKING:  # a worker needs none of them
    from backend.executors.contract import Machine
    from backend.finetune.costs import TrainingCost
    from backend.finetune.rendered import Survey
    from backend.machine.speeds import Speeds

END_SECONDS = 0.2  # of a step: until it is noticed, and nothing of it is left


class Planned(NamedTuple):
    """What a step is estimated from."""

    recipe: Recipe
    facts: ModelFacts  # of the base model, with its tensors
    machine: "Machine"
    fetching: bool  # whether the base model must be brought, or made, first
    survey: "Survey | None"  # of the rows to train on, where they were looked at
    results: Mapping[str, Mapping[str, int]]  # of the steps before: folder → file → bytes

    @property
    def speed(self) -> "Speeds":
        """How fast the machine is."""
        return self.machine.speeds

    @property
    def around(self) -> float:
        """Seconds that a step takes beside its work."""
        return self.speed.start_seconds + END_SECONDS


class Need(NamedTuple):
    """What a step needs; sizes in bytes."""

    memory: int
    seconds: float
    files: Mapping[str, int] = {}  # of its result
    doubts: tuple[str, ...] = ()  # what of the model stays as it is, or is done otherwise for its sake
    training: "TrainingCost | None" = None
    remedy: str = "choose a smaller model, or a machine with more memory"  # where its memory is not there
    notes: tuple[str, ...] = ()  # what is done where nothing else is asked for


def _nothing_pinned(stage: Any, facts: ModelFacts, token: str | None) -> Any:
    return stage


def _nothing_fetched(stage: Any, work: Work, folder: Path, token: str | None, report: Report) -> None:
    pass


def _no_need(stage: Any, planned: Planned) -> Need | None:
    return None


def _no_words(stage: Any) -> tuple[str, str]:
    return "", ""


class Step(NamedTuple):
    """A step: what it does, what must be done for it before, and what it needs.

    Attributes:
        run: Does it: sealed inputs in, one sealed folder out. Takes the work, the caller's token where it is online,
            and the report.
        pin: Checks a stage against the model's headers before a job starts; returns it with what it names at a commit.
        fetch: Brings what a stage reads into the folder of the fetch step.
        need: Estimates a stage from what the steps before it have planned; None: nothing worth a word.
        words: A stage as a title and a detail.
        summary: What it is good for, for who chooses it.
        online: Whether it has the network and the token; all others run in a process with neither.
        alone: Whether it takes the memory of a model, or the GPU: one such step at a time on a machine.
        repeats: Whether it brings the same again when it is run again, so that what was made from it stays.
        stoppable: Whether it can be ended early and keeps what it has made.
        machines: Whether several machines may do it together, and so need the network between them.
    """

    run: Callable[[Work, str | None, Report], None]
    pin: Callable[[Any, ModelFacts, str | None], Any] = _nothing_pinned
    fetch: Callable[[Any, Work, Path, str | None, Report], None] = _nothing_fetched
    need: Callable[[Any, Planned], Need | None] = _no_need
    words: Callable[[Any], tuple[str, str]] = _no_words
    summary: str = ""
    online: bool = False
    alone: bool = False
    repeats: bool = False
    stoppable: bool = False
    machines: bool = False
