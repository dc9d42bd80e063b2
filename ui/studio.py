"""Studio: what the page's handlers reach of the backend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.artifacts.artifact import MODELS, Artifact, Training
from backend.artifacts.compared import ComparedRow
from backend.artifacts.sealing import open_artifact
from backend.errors import JobError, SpecError
from backend.hub.ids import DEMO
from backend.jobs.store import Job
from backend.jobs.supervisor import Supervisor
from backend.machine.hardware import gpus
from backend.model_folder import weights_bytes
from backend.models.demo import BASE_MODEL
from backend.options import Frozen
from backend.serve.engines import AUTO, ENGINES, EngineName
from backend.serve.installation import Installation
from backend.serve.servers import Servers
from backend.settings import Settings
from backend.spec import Spec
from backend.stage import Stage
from backend.stages import STEPS, quantize
from backend.stages.held_out import read_worst
from backend.stages.work import base_folder, trained_on
from ui.kit.format import ago, size
from ui.visitor import alone


@dataclass(frozen=True)
class Result:
    """An artifact with weights that a job made."""

    job: Job
    folder: Path
    artifact: Artifact

    @property
    def key(self) -> str:
        """Its key in the browser; never a path."""
        return f"{self.job.id}/{self.folder.name}"

    @property
    def answers(self) -> bool:
        """Return whether one can chat with it: with an adapter where the model that it was trained on is still here."""
        return self.artifact.kind in MODELS or (self.artifact.kind == "adapter" and trained_on(self.folder) is not None)

    @property
    def title(self) -> str:
        """Base model and method, as lists show it."""
        names = [model_name(self.job.spec["base_model"])]
        if self.artifact.merged and self.artifact.kind != "merged":
            names.append("merged")
        return " · ".join([*names, method_name(self.artifact.options)])

    @property
    def label(self) -> str:
        """The title, with size and age."""
        return f"{self.title} · {size(self.artifact.size)} · {ago(self.job.finished or self.job.created)}"


@dataclass(frozen=True)
class Base:
    """The model that a job began with, to chat with for comparison."""

    job: Job
    folder: Path

    @property
    def key(self) -> str:
        """Its key in the browser; never a path."""
        return f"{self.job.id}/{_BASE}"

    @property
    def title(self) -> str:
        """Its name, as lists show it."""
        return f"base: {model_name(self.job.spec['base_model'])}"

    @property
    def label(self) -> str:
        """The title, with size, and the commit that it is of."""
        revision = self.job.spec.get("revision") or ""
        return " · ".join([self.title, size(weights_bytes(self.folder) or None), *([revision[:7]] if revision else [])])


_BASE = "base"  # no name of a step

Model = Result | Base
"""What one can chat with."""


@dataclass(frozen=True)
class Studio:
    """The backend as one visitor's handlers use it."""

    settings: Settings
    supervisor: Supervisor
    servers: Servers
    installations: dict[str, Installation] = field(
        default_factory=lambda: {name: Installation(engine) for name, engine in ENGINES.items() if engine.install}
    )
    talking: dict[Path, set[str]] = field(default_factory=dict)
    """Who has loaded what is served: two visitors' jobs can have begun with the same model."""

    def load(self, model: "Model", owner: str, engine: EngineName = AUTO) -> None:
        """Begin to serve a model; see Servers.open()."""
        self.join(model.folder, owner)
        self.servers.open(model.folder, engine)

    def join(self, folder: Path, owner: str) -> None:
        """Note that an owner uses the server of a folder, or is about to start it."""
        others = self.talking.get(folder.resolve(), set()) if self.servers.status(folder).live else set()
        self.talking[folder.resolve()] = {*others, owner}

    def served(self, owner: str) -> list[tuple[Any, ...]]:
        """Return the state of the servers that an owner uses, and on your own machine of each installation."""
        used = [folder for folder, owners in [*self.talking.items()] if owner in owners]
        told: list[tuple[Any, ...]] = [(folder, *self.servers.status(folder).model_dump().values()) for folder in used]
        return told if self.shared else [*told, *((each.text, each.installs) for each in self.installations.values())]

    def unload(self, model: "Model", owner: str) -> None:
        """Stop the server of a model.

        Raises:
            JobError: Another visitor has loaded the same model.
        """
        if not self.talking.get(model.folder.resolve(), set()) <= {owner}:
            raise JobError(
                f"Could not unload '{model.title}'. Another visitor has loaded it too: it stops when nobody uses it."
            )
        self.servers.stop(model.folder)

    def delete(self, job_id: str, owner: str) -> None:
        """Delete a job with everything that it made, and stop the servers that serve it."""
        self.supervisor.get(job_id, owner)
        for served in self.servers.live():
            if served.is_relative_to((self.settings.jobs / job_id).resolve()):
                self.servers.stop(served)
        self.supervisor.delete(job_id, owner)

    def results(self, owner: str) -> list[Result]:
        """Return everything that an owner's jobs have made, newest first."""
        jobs = [job for job in self.supervisor.list(owner) if job.kind == "recipe"]
        return [result for job in jobs for result in reversed(self.results_of(job, owner))]

    def results_of(self, job: Job, owner: str) -> list[Result]:
        """Return what one job has made, in the order in which it made it."""
        folders = self.supervisor.artifacts(job.id, owner) if job.kind == "recipe" else []
        return [Result(job, folder, open_artifact(folder)) for folder in folders]

    def worst_rows(self, results: Sequence[Result]) -> dict[str, tuple[ComparedRow, ...]]:
        """Return the rows that results answer worst, by their keys."""
        return {result.key: read_worst(self.settings.jobs / result.job.id, result.folder.name) for result in results}

    def models(self, owner: str) -> list[Model]:
        """Return what an owner can chat with, newest first, then the base models, each once."""
        bases = dict[Path, Base]()
        for job in self.supervisor.list(owner):
            folder = base_folder(self.settings.jobs / job.id) if job.kind == "recipe" else None
            if folder:
                bases.setdefault(folder, Base(job, folder))
        return [*(result for result in self.results(owner) if result.answers), *bases.values()]

    def model(self, key: str | None, owner: str) -> Model:
        """Return a model by its key in the browser; see result()."""
        job_id, _, name = (key or "").partition("/")
        if name != _BASE:
            return self.result(key, owner)
        job = self.supervisor.get(job_id, owner)
        folder = base_folder(self.settings.jobs / job_id)
        if folder is None:
            raise SpecError(f"'{model_name(job.spec['base_model'])}' is no longer here: choose another one.")
        return Base(job, folder)

    def in_the_way(self, spec: Spec, owner: str) -> list[Model]:
        """Return the models that are loaded on the GPU which a job needs.

        Raises:
            JobError: One of them is another visitor's.
        """
        live = self.servers.live() if gpus() and spec.uses_gpu else []
        own = {model.folder.resolve(): model for model in self.models(owner)} if live else {}
        if any(folder not in own or not self.talking.get(folder, set()) <= {owner} for folder in live):
            minutes = self.settings.server_idle_seconds / 60
            raise JobError(
                "Another visitor has loaded a model on the GPU, which this job needs to itself. Try again later: it is"
                f" unloaded once it has not been used for {minutes:.0f} min."
            )
        return [own[folder] for folder in live]

    def trained(self, job: Job, owner: str) -> Training | None:
        """Return what is recorded of a job's training, once it is done."""
        return next((r.artifact.training for r in self.results_of(job, owner) if r.artifact.kind == "adapter"), None)

    @property
    def shared(self) -> bool:
        """Return whether strangers use the page too: no recipe names a folder there, not even of one's own adapter."""
        return not alone(self.settings)

    def original_bytes(self, job: Job) -> int | None:
        """Return the size of the weights that a job began with, if they are still here."""
        base = base_folder(self.settings.jobs / job.id)
        return weights_bytes(base) or None if base else None

    def result(self, key: str | None, owner: str) -> Result:
        """Return a result by its key in the browser.

        Raises:
            JobError: The job is not the owner's.
            SpecError: The job has no such artifact.
        """
        job_id, _, name = (key or "").partition("/")
        if not name:
            raise SpecError("Choose a model first: the list shows what your jobs made.")
        job = self.supervisor.get(job_id, owner)
        for result in self.results_of(job, owner):
            if result.folder.name == name:
                return result
        raise SpecError(f"The job has no artifact '{name}': choose another one.")


_MADE = {"finetune": "fine-tuned", "merge": "merged"}


def method_name(options: Mapping[str, Any]) -> str:
    """Name what a stage makes: fine-tuned, merged, NF4, or for a cast the type, which is not a quantization."""
    if options.get("stage") in _MADE:
        return _MADE[str(options["stage"])]
    return str(options.get("dtype")) if options.get("method") == "cast" else quantize.method_name(options)


def stage_title(stage: Stage) -> str:
    """Say what a stage does: Fine-tune an adapter, Merge an adapter, Quantize to NF4, Cast to bfloat16."""
    return STEPS[stage.stage].words(stage)[0]


def way(stages: Sequence[Frozen]) -> str:
    """Say in one line what a model becomes: merged → NF4; variants stand beside each other: merged → NF4, GPTQ."""
    dumped = [stage.model_dump() for stage in stages]
    before = [method_name(options) for options in dumped if options["stage"] in _MADE]
    variants = ", ".join(method_name(options) for options in dumped if options["stage"] not in _MADE)
    return " → ".join([*before, variants] if variants else before)


def model_name(model: str) -> str:
    """Return the short name of a base model."""
    return (BASE_MODEL if model == DEMO else model).rstrip("/").rsplit("/", 1)[-1]
