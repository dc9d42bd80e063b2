"""Commands that are recipes: of one stage, with one result."""

from pathlib import Path
from typing import Any

from backend.artifacts.artifact import Artifact
from backend.artifacts.sealing import open_artifact
from backend.cli.command import Command
from backend.cli.names import hub_token
from backend.jobs.foreground import Terminal, check_output, finished, move
from backend.quantize import METHODS
from backend.recipes import Recipe, parse_recipe
from backend.settings import load_settings
from backend.stages.prepare import prepare
from backend.stages.work import artifacts

METHOD_OPTIONS = {name: module.Options for name, module in METHODS.items()}


def quantization(command: Any) -> Recipe:
    """Return the recipe of a command that has a model, a method and the method's options."""
    stage = {"stage": "quantize", "method": command.method, **Command.given(command, *METHOD_OPTIONS.values())}
    data = {"base_model": command.model, "revision": command.revision, "stages": [stage]}
    return parse_recipe(data, paths=True)


def made(recipe: Recipe, folder: Path) -> tuple[Path, Artifact]:
    """Do a recipe that has one result; return where that lies and what it is."""
    settings = load_settings().writable()
    output = check_output(folder)
    token = hub_token() if recipe.on_hub else None
    prepared = prepare(recipe, settings.data, token)
    with finished(prepared, token, Terminal().hear, settings) as job:
        move(artifacts(job)[0], output)
    return output, open_artifact(output)
