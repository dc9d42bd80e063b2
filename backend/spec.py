"""Spec: what a job is asked to do, as its steps read it; a recipe is one, a look at rows is another.

Each kind of job says its steps, with what each of them is asked, and whatever the steps cannot know themselves.
"""

import math
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from backend.evaluate import EvaluateOptions
from backend.finetune.options import FinetuneOptions
from backend.hub.ids import DEMO, is_local
from backend.options import Frozen

CONVERT = "convert"
"""The step that makes safetensors of pickled weights."""


class Asked(NamedTuple):
    """A step, by the name that its module has in backend.stages, and what it is asked."""

    step: str
    options: Any = None


class Wanted(NamedTuple):
    """The model that a job begins with, as it must be fetched."""

    model: str
    revision: str | None
    converts: bool


class Given(NamedTuple):
    """The folder with weights that a job is about, where its own steps make none."""

    folder: Path
    base: Path | None = None  # of an adapter: the folder of its base model
    original: Path | None = None  # made elsewhere, and made an artifact of first
    base_model: str | None = None  # of a folder made elsewhere: the Hub id of what it was made from
    reference: Path | None = None  # the folder of what it was made from, where it is named


class Spec(Frozen):
    """The base of the kinds of job."""

    lane: ClassVar[Literal["machine", "uploads", "looks"]] = "machine"
    """Jobs of one lane wait for each other."""

    step_seconds: ClassVar[float] = math.inf
    """How long one of its steps may take."""

    resumes: ClassVar[bool] = True
    """Whether the same command goes on where a failed one was."""

    @property
    @abstractmethod
    def plan(self) -> tuple[Asked, ...]:
        """The steps, in order."""

    @property
    def steps(self) -> tuple[str, ...]:
        """The names of the steps, in order."""
        return tuple(asked.step for asked in self.plan)

    @property
    def title(self) -> tuple[str, str]:
        """What is done, and what it is done to; both empty of a recipe, which its stages describe."""
        return "", ""

    @property
    def uses_gpu(self) -> bool:
        """Whether a step computes on the GPU, where there is one."""
        return any(getattr(asked.options, "gpu", False) for asked in self.plan)

    @property
    def on_hub(self) -> bool:
        """Whether fetching needs the Hub; else it means reading what lies on this machine."""
        return False

    @property
    def asked(self) -> str:
        """What a run is told from others by, beside what its files hold."""
        return self.model_dump_json()

    @property
    def carried_out(self) -> Frozen | None:
        """The recipe that is carried out, if one is."""
        return None

    @property
    def wanted(self) -> Wanted | None:
        """The model that it begins with, if it begins with one."""
        return None

    def files(self) -> list[Path]:
        """Return the files and folders of this machine that it reads."""
        return []

    def given(self, job: Path) -> Given | None:
        """Return the folder that it is about; None where its own steps make what it is about.

        Args:
            job: The job's folder.
        """
        return None

    def only_looks(self, models: Path) -> bool:
        """Return whether fetching is a look at a model that lies here whole, and the next step goes through it once.

        Such a look needs no network, and no memory that would be missed afterwards.

        Args:
            models: Where downloaded models lie, and the bundled one.
        """
        return False


class Cut(Frozen):
    """How a calibrated quantization would read rows: as windows of tokens."""

    embedded: bool = Field(description="Whether it reads the embedded texts, and no rows.")
    mixed: bool = Field(False, description="Whether it reads them beside the rows, which the recipe trains on.")
    num_calibration_samples: int
    max_seq_length: int
    measured_on: EvaluateOptions | None = Field(None, description="What quality is measured on, if it is.")


RENDERING = ("chat_template", "loss", "max_length")
"""Options of a training that a preview reads beside those of the rows."""


class Preview(Spec):
    """Look at rows, and at what a model would see of them, before anything is trained or calibrated."""

    lane = "looks"
    step_seconds = 1800.0  # a tokenizer that never ends beats, too, and all others wait
    resumes = False

    base_model: str = Field(description="As a recipe's.")
    revision: str | None = None
    options: FinetuneOptions
    cut: Cut | None = Field(None, description="Of rows that are calibrated on; None: they are learned from.")

    @property
    def plan(self) -> tuple[Asked, ...]:
        """The rows come, are looked through, and are rendered."""
        return Asked("fetch", self), Asked("examine", self), Asked("render", self)

    @property
    def title(self) -> tuple[str, str]:
        """What is done, and with which model's eyes."""
        return "Inspect rows", self.base_model

    @property
    def here(self) -> bool:
        """Whether its model is the bundled one, or lies in a folder of this machine."""
        return self.base_model == DEMO or is_local(self.base_model)

    def files(self) -> list[Path]:
        """Return the files and folders of this machine that it reads."""
        model = [Path(self.base_model)] if is_local(self.base_model) else []
        measured = self.cut.measured_on.files() if self.cut and self.cut.measured_on else {}
        return [*model, *self.options.files().values(), *measured.values()]
