"""What a job can be asked to do, and the steps that this takes.

A job's folder holds its spec as `<kind>.json` and the sealed output of each step as `stages/<n>-<name>/`.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from backend.artifacts.sealing import is_sealed, open_artifact
from backend.check import CheckOptions
from backend.disk import read_whole, write_whole
from backend.errors import JobError, SpecError
from backend.evaluate import EvaluateOptions
from backend.finetune.options import FinetuneOptions
from backend.hub.ids import DEMO, STORED, is_local
from backend.options import Frozen, parse
from backend.publish import PublishOptions
from backend.recipes import Recipe


class Publication(Frozen):
    """Publish a folder with weights that exists."""

    folder: Path = Field(description="The artifact, or a folder made elsewhere, of which one is made first.")
    options: PublishOptions
    base: Path | None = Field(None, description="Of an adapter: the folder of its base model, for the check.")
    base_model: str | None = Field(None, description="Of a folder made elsewhere: the Hub id of what it was made from.")
    elsewhere: bool = Field(False, description="Whether it is no artifact yet.")
    checked: bool = Field(False, description="Whether it need not be checked before: it has passed already.")

    def files(self) -> list[Path]:
        """Return the folders of this machine that it reads."""
        return [self.folder, *([self.base] if self.base else [])]

    def artifact(self, job: Path) -> Path:
        """Give the folder of the artifact that is published; an adopted one bears the name that its user knows."""
        return job / "adopted" / self.folder.resolve().name if self.elsewhere else self.folder


class Evaluation(Frozen):
    """Measure a model folder that exists against its reference."""

    folder: Path = Field(description="The artifact, or a model folder made elsewhere.")
    reference: str = Field(description="As a recipe's base_model.")
    revision: str | None = None
    converts: Literal[True] | None = Field(None, description="As a recipe's.")
    options: EvaluateOptions

    def files(self) -> list[Path]:
        """Return the files and folders of this machine that it reads."""
        reference = [Path(self.reference)] if is_local(self.reference) else []
        return [self.folder, *reference, *self.options.files().values()]


class Checking(Frozen):
    """Try a model folder that exists in the engine that serves it."""

    folder: Path = Field(description="The artifact, or a model folder made elsewhere.")
    base: Path | None = Field(None, description="Of an adapter: the folder of its base model.")
    options: CheckOptions

    def files(self) -> list[Path]:
        """Return the folders of this machine that it reads."""
        return [self.folder, *([self.base] if self.base else [])]


class Streaming(Frozen):
    """Do a recipe from repo to repo, shard by shard, so that the model never lies here whole; see can_stream()."""

    recipe: Recipe

    def files(self) -> list[Path]:
        """Return the folders of this machine that it reads."""
        return self.recipe.files()


class Cut(Frozen):
    """How a calibrated quantization would read rows: as windows of tokens."""

    embedded: bool = Field(description="Whether it reads the embedded prose, and no rows.")
    num_calibration_samples: int
    max_seq_length: int
    measured_on: EvaluateOptions | None = Field(None, description="What quality is measured on, if it is.")


class Preview(Frozen):
    """Look at rows, and at what a model would see of them, before anything is trained or calibrated."""

    base_model: str = Field(description="As a recipe's.")
    revision: str | None = None
    options: FinetuneOptions
    cut: Cut | None = Field(None, description="Of rows that are calibrated on; None: they are learned from.")

    def files(self) -> list[Path]:
        """Return the files and folders of this machine that it reads."""
        model = [Path(self.base_model)] if is_local(self.base_model) else []
        measured = self.cut.measured_on.files() if self.cut and self.cut.measured_on else {}
        return [*model, *self.options.files().values(), *measured.values()]


MODEL, PUBLISHED = "model.json", "published.json"
"""Files of a fetch and of a publish step: where the model lies, and where artifacts were published."""


class Fetched(Frozen):
    """Where a step finds what a fetch step has brought."""

    folder: Path = Field(description="Of the model, or of its tokenizer alone.")
    adapters: tuple[Path, ...] = Field((), description="Those that are merged in.")
    pickled: Path | None = Field(None, description="Where the weights lie that the model is converted from.")


RENDERING = ("chat_template", "loss", "max_length")
"""Options of a training that a preview reads beside those of the rows."""

Spec = Recipe | Publication | Evaluation | Checking | Streaming | Preview

KINDS: dict[str, type[Spec]] = {
    "recipe": Recipe,
    "publication": Publication,
    "evaluation": Evaluation,
    "checking": Checking,
    "streaming": Streaming,
    "preview": Preview,
}

NO_JOB = "This job cannot be read: it is damaged, or of another version of Weightsmith. Delete it."

CONVERT = "convert"
"""The step that makes safetensors of pickled weights."""

ONLINE = ("fetch", "adopt", "publish", "stream")
"""Steps that have the network and the token; all others run in a process with neither."""

ALONE = (CONVERT, "finetune", "merge", "quantize", "evaluate", "check")
"""Steps that take the memory of a model or the GPU: one at a time on a machine."""


MODELS = ("merged", "quantized")
"""Kinds of artifacts that can be measured and served."""

RESULTS = ("adapter", *MODELS)
"""Kinds of artifacts that can be published."""


def publication(
    folder: Path, options: PublishOptions, base: Path | None = None, base_model: str | None = None
) -> Publication:
    """Give what publishes a folder with weights, after a check where it has passed none; see Publication.

    Raises:
        SpecError: The folder holds nothing that can be published, it is to go into itself, or a license asks another
            name of the repo.
    """
    from backend.publish.adopt import describe, is_made_elsewhere
    from backend.publish.card.base_card import read_base_card
    from backend.publish.card.licenses import check_name
    from backend.publish.destination import check_outside

    if options.repo_id:
        check_name(options.repo_id, read_base_card(folder).licenses)
    if is_made_elsewhere(folder):
        describe(folder, base_model)
        check_outside(options, folder)
        return Publication(folder=folder, options=options, base=base, base_model=base_model, elsewhere=True)
    check = open_artifact(folder).check
    check_outside(options, folder)
    return Publication(folder=folder, options=options, base=base, checked=check is not None and check.passed)


def kind(spec: Spec) -> str:
    """Give the spec's kind, a key of KINDS."""
    return type(spec).__name__.lower()


def can_stream(recipe: Recipe) -> bool:
    """Whether a recipe can go from repo to repo: shard after shard becomes one result, and the Hub is at both ends."""
    *before, last = recipe.stages
    both_ends = not (recipe.base_model == DEMO or is_local(recipe.base_model))
    both_ends = both_ends and recipe.publish is not None and recipe.publish.repo_id is not None
    in_passing = all(stage.stage == "merge" and not stage.keep for stage in before)
    return both_ends and in_passing and last.streams


def steps(spec: Spec) -> tuple[str, ...]:
    """Name the steps of a spec, in order; what is published is checked before, unless somebody insists."""
    if isinstance(spec, Publication):
        needed = ("publish",) if spec.checked or spec.options.insist else ("check", "publish")
        return ("adopt", *needed) if spec.elsewhere else needed
    if isinstance(spec, Checking):
        return ("check",)
    if isinstance(spec, Streaming):
        return ("stream",)
    if isinstance(spec, Evaluation):
        return ("fetch", *[CONVERT] * bool(spec.converts), "evaluate")
    if isinstance(spec, Preview):
        return ("fetch", "examine", "render")
    named = tuple(stage.stage for stage in spec.stages)
    unchecked = spec.publish is not None and not spec.publish.insist and "check" not in named
    return (
        "fetch",
        *[CONVERT] * bool(spec.converts),
        *named,
        *["check"] * unchecked,
        *["publish"] * (spec.publish is not None),
    )


def stage_folder(job: Path, spec: Spec, index: int) -> Path:
    """Give where a step's sealed output lies."""
    return job / "stages" / f"{index}-{steps(spec)[index]}"


def write_spec(job: Path, spec: Spec) -> None:
    """Put the spec into the job's folder."""
    job.mkdir(parents=True, exist_ok=True)
    write_whole(job / f"{kind(spec)}.json", spec.model_dump_json(exclude_none=True, indent=2))


def read_spec(job: Path) -> Spec:
    """Read the spec that the job's folder holds.

    Raises:
        JobError: The folder is no job's, or its spec cannot be read.
    """
    for name in KINDS:
        if (job / f"{name}.json").is_file():
            return parse_spec(name, read_whole(job / f"{name}.json", dict[str, Any]))
    raise JobError(f"'{job.name}' holds no job: start it again.")


def holds_spec(job: Path) -> bool:
    """Return whether a folder is one that a job was begun in."""
    return any((job / f"{name}.json").exists() for name in KINDS)


def parse_spec(kind: str, data: Any) -> Spec:
    """Build a spec from what was stored of it.

    Raises:
        JobError: It is none that this version knows.
    """
    try:
        spec: Spec = parse(KINDS[kind], data, context=STORED)
    except (KeyError, SpecError) as e:
        raise JobError(NO_JOB) from e
    return spec


def artifacts(job: Path, kinds: tuple[str, ...] = RESULTS) -> list[Path]:
    """Give the sealed artifacts with weights in a job's folder, in the order in which they were made."""
    found = [path for path in (job / "stages").glob("*") if is_sealed(path) and open_artifact(path).kind in kinds]
    return sorted(found, key=lambda path: int(path.name.split("-")[0]))


def only_looks(spec: Spec, models: Path) -> bool:
    """Return whether fetching is a look at a model that lies here whole, and what comes next computes piece by piece.

    Such a look needs no network, and no memory that would be missed afterwards.

    Args:
        spec: Of the job.
        models: Where downloaded models lie, and the bundled one.
    """
    if not isinstance(spec, Recipe) or spec.converts or not needs_no_network(spec):
        return False
    measured_here = all(stage.dataset is None for stage in spec.stages if stage.stage == "evaluate")
    return spec.stages[0].streams and measured_here and (spec.base_model != DEMO or is_sealed(models / DEMO))


def uses_gpu(spec: Spec) -> bool:
    """Whether a step of a spec computes on the GPU, where there is one; what streams never does."""
    made = spec.stages if isinstance(spec, Recipe) else ()
    calibrated = any(stage.stage == "quantize" and not stage.streams for stage in made)
    return calibrated or not {"finetune", "evaluate", "check"}.isdisjoint(steps(spec))


def check_options(spec: Spec, index: int) -> CheckOptions:
    """Return how a step checks: as its own stage says; the check before an upload is nobody's stage."""
    if isinstance(spec, Checking):
        return spec.options
    if isinstance(spec, Recipe) and 0 <= index - spec.first < len(spec.stages):
        stage = spec.stages[index - spec.first]
        return stage if isinstance(stage, CheckOptions) else CheckOptions()
    return CheckOptions()


def trained_on(adapter: Path) -> Path | None:
    """Give the folder of the model that an adapter of a job was trained on, if it is still here."""
    return base_folder(adapter.parent.parent)


def base_folder(job: Path) -> Path | None:
    """Give the folder of the model that a job began with, if it is still here."""
    found = read_whole(job / "stages" / "0-fetch" / MODEL, Fetched)
    return found.folder if found and found.folder.is_dir() else None


def published(job: Path, spec: Spec) -> list[dict[str, Any]]:
    """Give where a job's artifacts were published; empty before its last step is sealed."""
    return read_whole(stage_folder(job, spec, len(steps(spec)) - 1) / PUBLISHED, list[dict[str, Any]]) or []


def needs_no_network(spec: Spec) -> bool:
    """Whether fetching means reading what lies on this machine."""
    model = spec.base_model if isinstance(spec, Recipe) else spec.reference if isinstance(spec, Evaluation) else DEMO
    stages = spec.stages if isinstance(spec, Recipe) else ()
    return (model == DEMO or is_local(model)) and not any(stage.on_hub() for stage in stages)
