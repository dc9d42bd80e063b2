"""`run`: a recipe file."""

from pathlib import Path

from pydantic import Field

from backend.cli.command import Argument, Command
from backend.cli.names import hub_token
from backend.cli.recipe import moved, told
from backend.jobs.foreground import Terminal, check_output, finished
from backend.jobs.job import published
from backend.progress import Report
from backend.recipes import STAGES, Recipe, read_recipe
from backend.settings import load_settings
from backend.stages.held_out import read_worst
from backend.stages.prepare import prepare
from backend.stages.work import artifacts


class _Run(Command):
    recipe: Argument[Path] = Field(description=f"The recipe, YAML. Its stages: {', '.join(STAGES)}.")
    output: Path | None = Field(
        None,
        description="The folder to write; by default output/ in the data folder, and none where the model goes from"
        " repo to repo, shard by shard.",
    )

    def run(self) -> None:
        settings = load_settings().writable()
        recipe = read_recipe(self.recipe)
        wanted = check_output(self.output) if self.output else None
        spec = prepare(recipe, settings.data, hub_token(), wanted is not None, Report(Terminal().hear).log)
        output = wanted or settings.data / "output" / self.recipe.stem
        if isinstance(spec, Recipe):
            output = check_output(output)
        with finished(spec, hub_token(), Terminal().hear, settings) as job:
            done = published(job, spec)
            worst = [read_worst(job, folder.name) for folder in artifacts(job)]
            results, lines = told(moved(job, output), worst)
        lines += [f"published to {item['location']}" for item in done]
        self.say({"artifacts": results, "published": done}, "\n".join(lines))


COMMAND = _Run
