"""`finetune`: an adapter trained on rows."""

import sys
from pathlib import Path
from typing import Any

from pydantic import Field

from backend.cli.command import Argument, Command, with_options
from backend.cli.names import MODEL_HELP, hub_token
from backend.cli.recipe import made
from backend.cli.words import needs, summary, words
from backend.finetune.options import FinetuneOptions
from backend.finetune.presets import PresetName, preset_values
from backend.models.inspection import inspect
from backend.recipes import Recipe, parse_recipe
from backend.settings import load_settings
from backend.stages.estimate import estimate


class _Finetune(Command):
    model: Argument[str] = Field(description=MODEL_HELP)
    output: Path = Field(description="The folder to write; it must not exist.")
    base_revision: str | None = Field(None, description="Branch, tag or commit of the model.")

    preset: PresetName | None = Field(None, description="Set the training in one word; flags beside it count more.")

    def run(self) -> None:
        recipe = self._recipe({})
        facts = inspect(recipe.base_model, recipe.revision, hub_token())
        if self.preset:
            recipe = self._recipe(preset_values(self.preset, facts))
        sys.stderr.write(f"Estimated before the start: {needs(estimate(recipe, facts, load_settings().data))}\n")
        output, artifact = made(recipe, self.output)
        assert artifact.training
        self.say(
            {"output": str(output), "training": artifact.training.model_dump(), **summary(artifact)},
            f"{output}\n{words(artifact)}",
        )

    def _recipe(self, preset: dict[str, Any]) -> Recipe:
        stage = {"stage": "finetune", **preset, **self.given(FinetuneOptions)}
        data = {"base_model": self.model, "revision": self.base_revision, "stages": [stage]}
        return parse_recipe(data, paths=True)


COMMAND = with_options(_Finetune, {"finetune": FinetuneOptions})
