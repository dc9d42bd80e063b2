"""Draft: the recipe as the forms say it, before it is checked, and the way back from a recipe into the forms."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from backend.data.options import DEMO_DATASET, RowsOptions, is_file
from backend.errors import SpecError
from backend.evaluate import EvaluateOptions
from backend.finetune.options import FinetuneOptions
from backend.merge.options import MergeOptions
from backend.models.facts import ModelFacts
from backend.quantize.calibrated.options import CalibratedOptions
from backend.recipes import STAGES, Recipe, Stage, parse_recipe, parse_yaml
from ui.data.rows_form import can_show_rows
from ui.kit.forms import can_show
from ui.recipe.others import OWN


class Uploads(NamedTuple):
    """Files of the visitor's own, where they lie, or what they are called."""

    text: str | None = None  # to measure on
    rows: str | None = None  # to learn from
    calibration: str | None = None  # to calibrate on

    @property
    def names(self) -> "Uploads":
        """What they are called."""
        return Uploads(*(path and Path(path).name for path in self))

    def used(self, recipe: Recipe) -> "Uploads":
        """Return those that a recipe reads."""
        calibrated = any(s.calibration.dataset == self.calibration for s in _calibrated(recipe) if s.calibration)
        measured = any(s.text == self.text for s in recipe.stages if isinstance(s, EvaluateOptions))
        learned = recipe.tuning is not None and recipe.tuning.dataset == self.rows
        return Uploads(
            self.text if measured else None, self.rows if learned else None, self.calibration if calibrated else None
        )


NO_UPLOADS = Uploads()


@dataclass(frozen=True)
class Draft:
    """What the forms hold; values are as typed.

    Attributes:
        base_model: As it was checked when it was chosen.
        revision: Its commit.
        stages: The values of each stage that is wanted, in order; of one that comes twice the name has a number.
        uploads: What they read of the visitor's own.
    """

    base_model: str
    revision: str | None
    stages: dict[str, dict[str, Any]]
    uploads: Uploads = NO_UPLOADS

    def recipe(self, paths: bool) -> Recipe:
        """Check the draft.

        Args:
            paths: Whether it may name folders of this machine; uploads, which are one's own, are no matter of that.

        Raises:
            SpecError: Every fault, each with its field.
        """
        stages = [{"stage": name.split()[0], **values} for name, values in self.stages.items()]
        data = {"base_model": self.base_model, "revision": self.revision or None, "stages": stages}
        return with_uploads(parse_recipe(data, paths=paths), self.uploads)

    def field(self, stage: str, name: str) -> str:
        """Name a field as faults of the recipe do."""
        return f"stages[{list(self.stages).index(stage)}].{name}"

    def faults(self, error: SpecError) -> dict[str, dict[str, str]]:
        """Return faults by stage and by the bare name of their field; those of a list's entries stand at the list."""
        found: dict[str, dict[str, str]] = {name: {} for name in self.stages}
        names = list(self.stages)
        for field, text in error.faults.items():
            at = _FIELD.match(field)
            if at and int(at["stage"]) < len(names):
                found[names[int(at["stage"])]].setdefault(at["name"], text)
        return found


_MADE = ("adapter", "merged", "quantized", None)
"""What stages make, in the order in which they make it; then those come that look at it."""


def in_order(stages: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the values of stages, by name, in the order of a recipe; stages that make the same stay as they are."""
    return dict(sorted(stages.items(), key=lambda item: _rank(item[0].split()[0])))


def _rank(stage: str) -> int:
    return _MADE.index(STAGES[stage][0].makes)


_FIELD = re.compile(r"stages\[(?P<stage>\d+)\]\.(?P<name>\w+(\.\w+)?)")


def _calibrated(recipe: Recipe) -> list[CalibratedOptions]:
    return [stage for stage in recipe.stages if isinstance(stage, CalibratedOptions)]


def with_uploads(recipe: Recipe, uploads: Uploads) -> Recipe:
    """Return a recipe that measures on, learns from and calibrates on the files that are given."""
    return recipe.model_copy(update={"stages": tuple(_with_upload(stage, uploads) for stage in recipe.stages)})


def _with_upload(stage: Stage, uploads: Uploads) -> Stage:
    if uploads.text and isinstance(stage, EvaluateOptions):
        return stage.model_copy(update={"text": uploads.text})
    if uploads.rows and isinstance(stage, FinetuneOptions):
        return stage.model_copy(update={"dataset": uploads.rows})
    if uploads.calibration and isinstance(stage, CalibratedOptions) and stage.calibration:
        return stage.with_files({"calibration": uploads.calibration})
    return stage


def suits(recipe: Recipe, facts: ModelFacts) -> None:
    """Compare every stage with the base model.

    Raises:
        SpecError: What does not fit it, with its field.
    """
    for stage in recipe.making:
        try:
            stage.check(facts)
        except SpecError as e:
            i = recipe.stages.index(stage)
            raise SpecError(str(e), {f"stages[{i}].{name}": text for name, text in e.faults.items()}) from e


@dataclass(frozen=True)
class Parts:
    """A recipe as the forms can show it."""

    finetune: FinetuneOptions | None
    calibration: RowsOptions | None
    merge: MergeOptions | None
    quantize: tuple[Any, ...]
    evaluate: EvaluateOptions | None
    others: dict[str, Stage]


def parts(recipe: Recipe, uploads: Uploads = NO_UPLOADS) -> Parts | None:
    """Return a recipe as the forms show it, or None if they cannot show all of it.

    Args:
        recipe: What is to be shown.
        uploads: What it reads of the visitor's own, of which it does not say where that lies.
    """
    finetune, merge = recipe.tuning, recipe.merging
    quantize = recipe.quantizing
    evaluate = next((stage for stage in recipe.stages if isinstance(stage, EvaluateOptions)), None)
    found: dict[str, Stage] = {stage.stage: stage for stage in recipe.stages}
    others = {name: found[name] for name in STAGES if name in found and name not in OWN}
    shown = [stage for stage in (finetune, merge, *quantize, evaluate, *others.values()) if stage]
    shown.sort(key=lambda stage: _rank(stage.stage))
    if shown != list(recipe.stages) or recipe.publish or not all(map(can_show, shown)):
        return None
    if evaluate and (evaluate.text or not _named_alone(evaluate.rows)):
        return None
    if finetune and not (uploads.rows or can_show_rows(finetune)):
        return None
    if finetune and merge and merge.adapters:
        return None
    read = [stage.calibration for stage in _calibrated(recipe)]
    calibration = read[0] if read else None
    if any(rows != calibration for rows in read):
        return None
    elsewhere = calibration and (is_file(calibration.dataset) or calibration.dataset == DEMO_DATASET)
    if elsewhere and not uploads.calibration:
        return None
    return Parts(finetune, calibration, merge, quantize, evaluate, others)


def _named_alone(rows: RowsOptions | None) -> bool:
    """Return whether a text box can show rows: nothing is said of them but their name."""
    fields = RowsOptions.model_fields
    return rows is None or all(getattr(rows, name) == fields[name].default for name in fields if name != "dataset")


def read_yaml(text: str, paths: bool) -> Recipe:
    """Read a recipe that was pasted.

    Args:
        text: YAML; JSON is YAML too.
        paths: Whether it may name files and folders of this machine.

    Raises:
        SpecError: It is not valid YAML, or every fault with its field.
    """
    return parse_recipe(parse_yaml(text), paths=paths)
