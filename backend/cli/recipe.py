"""Commands that are recipes: of one stage, most of them with one result."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from backend.artifacts.artifact import Artifact
from backend.artifacts.compared import ComparedRow
from backend.artifacts.sealing import open_artifact
from backend.cli.command import Command
from backend.cli.names import hub_token
from backend.cli.words import summary, words, worst_data, worst_words
from backend.jobs.foreground import Terminal, check_output, finished, move
from backend.quantize import METHODS
from backend.quantize.calibrated.several_layouts import KEY
from backend.recipes import Recipe, parse_recipe
from backend.settings import load_settings
from backend.stages.prepare import prepare
from backend.stages.work import artifacts

METHOD_OPTIONS = {name: module.Options for name, module in METHODS.items()}


LAYOUTS = (
    list[str] | None,
    Field(None, description="Several layouts of one calibration, each in a folder of its own. [gptq] [awq]"),
)


def quantization(command: Any) -> Recipe:
    """Return the recipe of a command that has a model, a method, the method's options and perhaps several layouts."""
    stage = {"stage": "quantize", "method": command.method, **Command.given(command, *METHOD_OPTIONS.values())}
    if command.layouts:
        stage[KEY] = command.layouts
    data = {"base_model": command.model, "revision": command.revision, "stages": [stage]}
    return parse_recipe(data, paths=True)


def made(recipe: Recipe, folder: Path) -> tuple[Path, Artifact]:
    """Do a recipe that has one result; return where that lies and what it is."""
    [output] = all_made(recipe, folder)
    return output, open_artifact(output)


def all_made(recipe: Recipe, folder: Path) -> list[Path]:
    """Do a recipe that publishes nothing; return where its results lie."""
    settings = load_settings().writable()
    output = check_output(folder)
    token = hub_token() if recipe.on_hub else None
    prepared = prepare(recipe, settings.data, token)
    with finished(prepared, token, Terminal().hear, settings) as job:
        return moved(job, output)


def moved(job: Path, output: Path) -> list[Path]:
    """Move what a job has made to where it is wanted, several results into folders there that are named as theirs."""
    found = artifacts(job)
    places = [output] if len(found) == 1 else [output / folder.name for folder in found]
    for folder, place in zip(found, places, strict=True):
        move(folder, place)
    return places


def told(
    folders: Sequence[Path], worst: Sequence[tuple[ComparedRow, ...]] = ()
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return what is said of results, to a script and to a person.

    Args:
        folders: Where they lie.
        worst: The rows that each answers worst, where rows were compared.
    """
    results, lines = [], []
    for folder, rows in zip(folders, worst or [()] * len(folders), strict=True):
        artifact = open_artifact(folder)
        results.append({"output": str(folder), **summary(artifact), **worst_data(rows)})
        lines.append("\n".join([f"{folder}\n{words(artifact)}", *worst_words(artifact.metrics, rows)]))
    return results, lines
