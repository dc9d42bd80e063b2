"""Draft: the recipe as the forms say it, before it is checked, and the way back from a recipe into the forms."""

from dataclasses import dataclass
from typing import Any

from backend.errors import SpecError
from backend.evaluate import EvaluateOptions
from backend.options import Frozen
from backend.recipes import Recipe, parse_recipe, parse_yaml


@dataclass(frozen=True)
class Draft:
    """What the forms hold; values are as typed."""

    base_model: str
    revision: str | None
    quantize: dict[str, Any]
    evaluate: dict[str, Any] | None

    def data(self) -> dict[str, Any]:
        """Give the mapping that parse_recipe() takes."""
        stages = [{"stage": "quantize", **self.quantize}]
        if self.evaluate is not None:
            stages.append({"stage": "evaluate", **self.evaluate})
        return {"base_model": self.base_model, "revision": self.revision or None, "stages": stages}

    def recipe(self) -> Recipe:
        """Check the draft.

        Paths are allowed: the forms cannot name one but for the visitor's own upload, and the base model was checked
        when it was chosen.

        Raises:
            SpecError: Every fault, each with its field.
        """
        return parse_recipe(self.data(), paths=True)


@dataclass(frozen=True)
class Parts:
    """A recipe as the forms can show it."""

    quantize: Frozen
    evaluate: EvaluateOptions | None


def parts(recipe: Recipe) -> Parts | None:
    """Give what the forms show of a recipe, or None where it holds more than they can."""
    stages = list(recipe.stages)
    quantize = stages.pop(0)
    evaluate = stages.pop(0) if stages and isinstance(stages[0], EvaluateOptions) else None
    if stages or recipe.publish or quantize.stage != "quantize" or (evaluate and evaluate.text):
        return None
    return Parts(quantize, evaluate)


def read_yaml(text: str, paths: bool) -> Recipe:
    """Read a recipe that was pasted.

    Args:
        text: YAML; JSON is YAML too.
        paths: Whether it may name files and folders of this machine.

    Raises:
        SpecError: It is no YAML, or every fault with its field.
    """
    return parse_recipe(parse_yaml(text), paths=paths)


def faults_of(error: SpecError, stage: int) -> dict[str, str]:
    """Give the faults of one stage, by the bare name of their field."""
    start = f"stages[{stage}]."
    return {name.removeprefix(start): text for name, text in error.faults.items() if name.startswith(start)}
