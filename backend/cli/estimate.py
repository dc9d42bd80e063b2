"""`estimate`: what a recipe would need."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from backend.cli.command import Argument, Command, with_options
from backend.cli.names import MODEL_HELP, hub_token
from backend.cli.recipe import LAYOUTS, METHOD_OPTIONS, quantization
from backend.cli.words import model_words, needs
from backend.errors import SpecError
from backend.models.inspection import inspect
from backend.recipes import Recipe, read_recipe
from backend.settings import load_settings
from backend.stages.estimate import estimate, measured_speeds


class _Estimate(Command):
    model: Argument[str] = Field(
        description=f"{MODEL_HELP} Or a recipe file (.yaml), which says all the rest: a training is estimated so."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of the model.")

    def run(self) -> None:
        recipe, data = self._recipe(), load_settings().writable().data
        facts = inspect(recipe.base_model, recipe.revision, hub_token())
        for stage in recipe.making:
            stage.check(facts)
        measured_speeds(data)
        needed = estimate(recipe, facts, data)
        more: dict[str, Any] = {"training": needed.training_memory} if needed.training else {}
        more |= {"warnings": needed.warnings} if needed.warnings else {}
        more |= {"notes": needed.notes} if needed.notes else {}
        self.say(needed.model_dump() | more, f"{model_words(facts)}\n{needs(needed)}")

    def _recipe(self: Any) -> Recipe:
        """Return the recipe that is meant: a file's, or that of one method."""
        if Path(self.model).suffix in (".yaml", ".yml"):
            if flags := self.model_fields_set - {"model", "json_"}:
                raise SpecError(f"'{self.model}' says everything itself: leave out --{min(flags).replace('_', '-')}.")
            return read_recipe(Path(self.model))
        if self.method is None:
            raise SpecError(f"Could not estimate '{self.model}'. Say how with --method, or give a recipe file.")
        return quantization(self)


METHOD = (
    Literal[tuple(METHOD_OPTIONS)] | None,
    Field(None, description="How; a recipe file says it itself."),
)

COMMAND = with_options(_Estimate, METHOD_OPTIONS, method=METHOD, layouts=LAYOUTS)
