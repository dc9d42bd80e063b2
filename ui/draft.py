"""Draft: the recipe as the forms say it, before it is checked, and the way back from a recipe into the forms."""

import re
from dataclasses import dataclass
from typing import Any

from backend.errors import SpecError
from backend.evaluate import EvaluateOptions
from backend.finetune.options import FinetuneOptions
from backend.merge import MergeOptions
from backend.models.facts import ModelFacts
from backend.recipes import Recipe, parse_recipe, parse_yaml
from ui.forms import can_show
from ui.rows import can_show_rows


@dataclass(frozen=True)
class Draft:
    """What the forms hold; values are as typed.

    Attributes:
        base_model: As it was checked when it was chosen.
        revision: Its commit.
        stages: The values of each stage that is wanted, in order; of one that comes twice the name has a number.
        upload: The visitor's own text to measure on.
        rows: The visitor's own file to learn from.
    """

    base_model: str
    revision: str | None
    stages: dict[str, dict[str, Any]]
    upload: str | None = None
    rows: str | None = None

    def recipe(self, paths: bool) -> Recipe:
        """Check the draft.

        Args:
            paths: Whether it may name folders of this machine; uploads, which are one's own, are no matter of that.

        Raises:
            SpecError: Every fault, each with its field.
        """
        stages = [{"stage": name.split()[0], **values} for name, values in self.stages.items()]
        data = {"base_model": self.base_model, "revision": self.revision or None, "stages": stages}
        return with_uploads(parse_recipe(data, paths=paths), self.upload, self.rows)

    def field(self, stage: str, name: str) -> str:
        """Name a field as faults of the recipe do."""
        return f"stages[{list(self.stages).index(stage)}].{name}"

    def faults(self, error: SpecError) -> dict[str, dict[str, str]]:
        """Give faults by stage and by the bare name of their field; those of a list's entries stand at the list."""
        found: dict[str, dict[str, str]] = {name: {} for name in self.stages}
        names = list(self.stages)
        for field, text in error.faults.items():
            at = _FIELD.match(field)
            if at and int(at["stage"]) < len(names):
                found[names[int(at["stage"])]].setdefault(at["name"], text)
        return found


_FIELD = re.compile(r"stages\[(?P<stage>\d+)\]\.(?P<name>\w+)")


def with_uploads(recipe: Recipe, text: str | None, rows: str | None) -> Recipe:
    """Give a recipe that measures on a text file and learns from a file with rows, if these are given."""
    stages = tuple(
        stage.model_copy(update={"text": text}) if text and isinstance(stage, EvaluateOptions)
        else stage.model_copy(update={"dataset": rows}) if rows and isinstance(stage, FinetuneOptions)
        else stage
        for stage in recipe.stages
    )  # fmt: skip
    return recipe.model_copy(update={"stages": stages})


def check(recipe: Recipe, facts: ModelFacts) -> None:
    """Compare every stage with the base model.

    Raises:
        SpecError: What does not fit it, with its field.
    """
    for i, stage in enumerate(recipe.stages):
        if stage.stage != "evaluate":
            try:
                stage.check(facts)
            except SpecError as e:
                raise SpecError(str(e), {f"stages[{i}].{name}": text for name, text in e.faults.items()}) from e


@dataclass(frozen=True)
class Parts:
    """A recipe as the forms can show it."""

    finetune: FinetuneOptions | None
    merge: MergeOptions | None
    quantize: tuple[Any, ...]
    evaluate: EvaluateOptions | None


def parts(recipe: Recipe, uploaded: bool = False) -> Parts | None:
    """Give what the forms show of a recipe, or None where it holds more than they can.

    Args:
        recipe: What is to be shown.
        uploaded: Whether it learns from an upload, of which it does not say where that lies.
    """
    tuning, merge = recipe.tuning, recipe.merging
    quantize = tuple(stage for stage in recipe.stages if stage.stage == "quantize")
    evaluate = next((stage for stage in recipe.stages if isinstance(stage, EvaluateOptions)), None)
    in_order = [stage for stage in (tuning, merge, *quantize, evaluate) if stage]
    if in_order != list(recipe.stages) or recipe.publish or not all(map(can_show, in_order)):
        return None
    if evaluate and evaluate.text:
        return None
    if tuning and not (uploaded or can_show_rows(tuning)):
        return None
    if tuning and merge and merge.adapters:
        return None
    return Parts(tuning, merge, quantize, evaluate)


def read_yaml(text: str, paths: bool) -> Recipe:
    """Read a recipe that was pasted.

    Args:
        text: YAML; JSON is YAML too.
        paths: Whether it may name files and folders of this machine.

    Raises:
        SpecError: It is no YAML, or every fault with its field.
    """
    return parse_recipe(parse_yaml(text), paths=paths)
