"""The kinds of job: a recipe, and what is done with a folder that exists; which steps each takes."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from backend.check import CheckOptions
from backend.evaluate import EvaluateOptions
from backend.hub.ids import DEMO, is_local
from backend.publish.options import PublishOptions
from backend.publish.plan import Plan
from backend.recipes import Recipe, Streaming
from backend.spec import CONVERT, Asked, Given, Preview, Spec, Wanted


class Publication(Spec):
    """Publish a folder with weights that exists."""

    lane = "uploads"

    folder: Path = Field(description="The artifact, or a folder made elsewhere, of which one is made first.")
    options: PublishOptions
    base: Path | None = Field(None, description="Of an adapter: the folder of its base model, for the check.")
    base_model: str | None = Field(None, description="Of a folder made elsewhere: the Hub id of what it was made from.")
    elsewhere: bool = Field(False, description="Whether it is no artifact yet.")
    checked: bool = Field(False, description="Whether it need not be checked before: it has passed already.")

    @classmethod
    def of(cls, plan: Plan) -> "Publication":
        """Return the job that does what was planned."""
        return cls(**plan._asdict())

    @property
    def plan(self) -> tuple[Asked, ...]:
        """It is made an artifact, checked unless it has passed or somebody insists, and published."""
        asked = [Asked("adopt")] if self.elsewhere else []
        if self.checks:
            asked.append(Asked("check", CheckOptions()))
        return *asked, Asked("publish", self.options)

    @property
    def title(self) -> tuple[str, str]:
        """What is done, and where it goes."""
        return "Publish", self.options.repo_id or Path(self.options.to_folder or "").name

    @property
    def checks(self) -> bool:
        """Whether it is checked before."""
        return not (self.checked or self.options.insist)

    def files(self) -> list[Path]:
        """Return the folders of this machine that it reads."""
        return [self.folder, *([self.base] if self.base else [])]

    def given(self, job: Path) -> Given:
        """Return the artifact that is published; an adopted one bears the name that its user knows."""
        if not self.elsewhere:
            return Given(self.folder, self.base)
        return Given(job / "adopted" / self.folder.resolve().name, self.base, self.folder, self.base_model)


class Evaluation(Spec):
    """Measure a model folder that exists against its reference."""

    folder: Path = Field(description="The artifact, or a model folder made elsewhere.")
    reference: str = Field(description="As a recipe's base_model.")
    revision: str | None = None
    converts: Literal[True] | None = Field(None, description="As a recipe's.")
    options: EvaluateOptions

    @property
    def plan(self) -> tuple[Asked, ...]:
        """The reference and the text come, then both models are measured."""
        asked = [Asked("fetch"), *([Asked(CONVERT)] if self.converts else [])]
        return *asked, Asked(self.options.stage, self.options)

    @property
    def title(self) -> tuple[str, str]:
        """What is done, and to which folder."""
        return "Measure", self.folder.name

    @property
    def on_hub(self) -> bool:
        """Whether its reference must be fetched from the Hub."""
        return not (self.reference == DEMO or is_local(self.reference))

    @property
    def wanted(self) -> Wanted:
        """Its reference."""
        return Wanted(self.reference, self.revision, bool(self.converts))

    def files(self) -> list[Path]:
        """Return the files and folders of this machine that it reads."""
        reference = [Path(self.reference)] if is_local(self.reference) else []
        return [self.folder, *reference, *self.options.files().values()]

    def given(self, job: Path) -> Given:
        """Return the folder that is measured."""
        return Given(self.folder)


class Checking(Spec):
    """Try a model folder that exists in the engine that serves it."""

    folder: Path = Field(description="The artifact, or a model folder made elsewhere.")
    base: Path | None = Field(None, description="Of an adapter: the folder of its base model.")
    reference: Path | None = Field(None, description="The folder of what it was made from, to compare with.")
    options: CheckOptions

    @property
    def plan(self) -> tuple[Asked, ...]:
        """One step."""
        return (Asked(self.options.stage, self.options),)

    @property
    def title(self) -> tuple[str, str]:
        """What is done, and to which folder."""
        return "Check", self.folder.name

    def files(self) -> list[Path]:
        """Return the folders of this machine that it reads."""
        return [self.folder, *filter(None, (self.base, self.reference))]

    def given(self, job: Path) -> Given:
        """Return the folder that is tried."""
        return Given(self.folder, self.base, reference=self.reference)


KINDS: dict[str, type[Spec]] = {
    "recipe": Recipe,
    "publication": Publication,
    "evaluation": Evaluation,
    "checking": Checking,
    "streaming": Streaming,
    "preview": Preview,
}
