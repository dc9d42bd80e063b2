"""Work: a step as its module gets it, and where in a job's folder the steps find what each other has made.

A job's folder holds the sealed output of each step as `stages/<n>-<name>/`.
"""

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from backend.artifacts.artifact import MODELS, RESULTS, Artifact
from backend.artifacts.sealing import is_sealed, open_artifact, partial, seal
from backend.disk import read_whole
from backend.errors import JobError
from backend.options import Frozen
from backend.recipes import Recipe
from backend.spec import Given, Spec

MODEL, PUBLISHED = "model.json", "published.json"
"""Files of a fetch and of a publish step: where the model lies, and where artifacts were published."""


class Fetched(Frozen):
    """Where a step finds what a fetch step has brought."""

    folder: Path = Field(description="Of the model, or of its tokenizer alone.")
    adapters: tuple[Path, ...] = Field((), description="Those that are merged in.")
    pickled: Path | None = Field(None, description="Where the weights lie that the model is converted from.")


class Work(NamedTuple):
    """A step of a job: what is asked of it, and where its inputs and its output lie."""

    job: Path  # the job's folder
    spec: Spec
    number: int  # of the step, from 0
    online: bool = False  # whether this process has the network; a step may take two processes

    @property
    def options(self) -> Any:
        """What the step is asked."""
        return self.spec.plan[self.number].options

    @property
    def recipe(self) -> Recipe:
        """The recipe that the job carries out."""
        recipe = self.spec.carried_out
        assert isinstance(recipe, Recipe)
        return recipe

    @property
    def given(self) -> Given | None:
        """The folder that the job is about, where its own steps make none."""
        return self.spec.given(self.job)

    @property
    def target(self) -> Path:
        """Where the step's output is sealed."""
        return self.output(self.number)

    @property
    def fetch_folder(self) -> Path:
        """The output of the fetch step."""
        return self.output(0)

    @property
    def fetched(self) -> Fetched:
        """What the fetch step has brought.

        Raises:
            SpecError, JobError: It is damaged, or gone.
        """
        open_artifact(self.fetch_folder)
        if found := read_whole(self.fetch_folder / MODEL, Fetched):
            return found
        raise JobError(f"'{self.fetch_folder.name}/{MODEL}' cannot be read: retry, which fetches the model again.")

    @property
    def adapters(self) -> list[Path]:
        """The folders of the adapters that are merged in: the one that the recipe trains, or those that were named."""
        if self.recipe.tuning:
            return [self.output(self.recipe.first)]
        return list(self.fetched.adapters)

    def output(self, index: int) -> Path:
        """Return where the output of a step lies."""
        return stage_folder(self.job, self.spec, index)

    def seal(self, artifact: Artifact, folder: Path | None = None) -> None:
        """Seal the step's output, which has no weights.

        Args:
            artifact: What is recorded.
            folder: What partial() gave; by default it is empty.
        """
        seal(folder or partial(self.target), self.target, artifact)


def stage_folder(job: Path, spec: Spec, index: int) -> Path:
    """Return where a step's sealed output lies."""
    return job / "stages" / f"{index}-{spec.steps[index]}"


def artifacts(job: Path, kinds: tuple[str, ...] = RESULTS) -> list[Path]:
    """Return the sealed artifacts with weights in a job's folder, in the order in which they were made."""
    found = [path for path in (job / "stages").glob("*") if is_sealed(path) and open_artifact(path).kind in kinds]
    return sorted(found, key=lambda path: int(path.name.split("-")[0]))


def models(job: Path) -> list[Path]:
    """Return those of them that are whole models."""
    return artifacts(job, MODELS)


def trained_on(adapter: Path) -> Path | None:
    """Return the folder of the model that an adapter of a job was trained on, if it is still here."""
    return base_folder(adapter.parent.parent)


def base_folder(job: Path) -> Path | None:
    """Return the folder of the model that a job began with, if it is still here."""
    found = read_whole(job / "stages" / "0-fetch" / MODEL, Fetched)
    return found.folder if found and found.folder.is_dir() else None
