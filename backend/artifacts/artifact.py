"""Artifact: a sealed folder of weights, config, tokenizer, recipe and `artifact.json`, which remembers how it was made.

Sealed means: written to a `.partial` folder, fsynced, manifest last, renamed. A folder without a valid manifest does
not exist.
"""

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from backend import __version__
from backend.artifacts.compared import Compared
from backend.artifacts.scores import Scores
from backend.disk import JOURNAL
from backend.intervals import FEWEST, LEVEL, Interval, between
from backend.options import Frozen

MANIFEST = "artifact.json"

BASE_CARD = "base_card.json"
SURVEY = "survey.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
UNPUBLISHED = frozenset({BASE_CARD, SURVEY, METRICS, SAMPLES})
"""Files that lie in an artifact for the page and the card, and never leave: rows of a user's stand in some of them."""

LOGS = "logs"
"""The folder in an artifact where TensorBoard or Trackio wrote; it never leaves either."""

CHECKPOINTS = "checkpoints"
RESUMED = (JOURNAL, CHECKPOINTS)
"""What a killed run goes on from: it lies in a `.partial` folder until that is sealed, and is no part of the result."""


MODELS = ("merged", "quantized")
"""Kinds of artifacts that are whole models: they can be measured and served."""

RESULTS = ("adapter", *MODELS)
"""Kinds of artifacts that can be published."""


def stays_here(name: str) -> bool:
    """Return whether a file of an artifact, by its relative name, is for this machine alone."""
    return name in UNPUBLISHED or Path(name).parts[0] == LOGS


class File(Frozen):
    """One file of an artifact."""

    size: int = Field(ge=0, description="Bytes.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Answer(Frozen):
    """What two models say to one prompt, most likely token by most likely token."""

    model_config = ConfigDict(str_strip_whitespace=False)

    prompt: str
    reference: str
    result: str


class Intervals(Frozen):
    """Between which figures 95 of 100 such measurements would hold the true one, from how much the windows differ."""

    kl_mean: Interval
    top1_agreement: Interval
    flips: Interval
    perplexity_change: Interval = Field(description="The perplexity over the reference's, less 1.")


class Metrics(Frozen):
    """What was measured; `convention` says how, in one line, for the card."""

    kl_mean: float = Field(ge=0, description="Mean KL(reference ‖ result) a token, in nats.")
    kl_p99: float = Field(ge=0, description="99th percentile of the same.")
    top1_agreement: float = Field(ge=0, le=1, description="Share of tokens where both think the same token likeliest.")
    flips: float | None = Field(
        None, ge=0, le=1, description="Share of tokens that one of both foretells and the other does not."
    )
    perplexity: float = Field(gt=0, description="Of the result.")
    reference_perplexity: float = Field(gt=0, description="Of the reference.")
    tokens: int = Field(gt=0, description="Predicted tokens measured on.")
    text: str = Field(description="Name of the text or data set.")
    convention: str = Field(description="How it was measured.")
    windows: int | None = Field(None, gt=0, description="Of the text; None: nobody counted them.")
    intervals: Intervals | None = Field(None, description="None: there were too few windows, or nobody computed them.")
    answers: tuple[Answer, ...] = Field((), description="Of both to the same prompts.")
    rows: Compared | None = Field(None, description="How its answers to rows compare, where there were rows.")
    tasks: Scores | None = Field(None, description="Benchmarks that were asked for.")
    tokens_per_second: float | None = Field(
        None,
        description="That the result writes alone, one after the other, on the artifact's hardware.",
    )
    reference_tokens_per_second: float | None = Field(None, description="The same of the reference.")
    engine: str = Field("transformers", description="That was timed writing both.")

    @property
    def words(self) -> str:
        """How much worse the result is, for a person."""
        change = f", {self.perplexity_change:+.1%}{between(self.interval('perplexity_change'), '+.1%')}"
        text = (
            f"perplexity {self.perplexity:.2f} (reference {self.reference_perplexity:.2f}{change}), KL mean"
            f" {self.kl_mean:.4f}{between(self.interval('kl_mean'), '.4f')}, 99th percentile {self.kl_p99:.3f}, top-1"
            f" agreement {self.top1_agreement:.1%}{between(self.interval('top1_agreement'), '.1%')},"
            f" {self.tokens} tokens of {self.text}"
        )
        said = [f"{text}. {self.sureness}" if self.windows else text]
        said += [f"{self.rows.words} {self.rows.legend}"] if self.rows else []
        said += [self.tasks.words] if self.tasks else []
        return "\n".join(said)

    def interval(self, figure: str) -> Interval | None:
        """Return the interval of a figure, by its name in Intervals, where there is one."""
        return getattr(self.intervals, figure) if self.intervals else None

    @property
    def perplexity_change(self) -> float:
        """The perplexity over the reference's, less 1."""
        return self.perplexity / self.reference_perplexity - 1

    @property
    def sureness(self) -> str:
        """What the intervals are, or why there are none; nothing where nobody counted the windows."""
        if self.windows is None:
            return ""
        drawn = f"{self.windows} window{'' if self.windows == 1 else 's'}"
        if self.intervals:
            return f"In brackets: {LEVEL:.0%} intervals, from how much the {drawn} differ."
        return f"{drawn} cannot tell how far these figures may be off: measure on {FEWEST} or more."


class Check(Frozen):
    """What came of trying an artifact in the engine that its card recommends."""

    passed: bool
    engine: str | None = Field(None, description="That served it; None where none could.")
    prompts: int = Field(description="Asked, each answered with the likeliest tokens.")
    tokens: int = Field(0, description="Of all answers.")
    agreement: float | None = Field(
        None, ge=0, le=1, description="Share of them that the same weights in transformers would write, or all but so."
    )
    likeliest: float | None = Field(None, ge=0, le=1, description="Share of them that are the likeliest there, too.")
    convention: str | None = Field(None, description="What counts as written by the same weights.")
    silent: str | None = Field(
        None, description="How many answers fail without an error, as one without an end does, in words."
    )
    findings: tuple[str, ...] = Field(
        (), description="In which ways they fail and the original's do not, a sentence each; any fails the check."
    )
    reason: str | None = Field(None, description="Why it failed.")

    @property
    def words(self) -> str:
        """What came of it, for a person."""
        if not self.passed:
            return f"The check failed. {self.reason}"
        text = (
            f"Checked in {self.engine}: {self.agreement:.0%} of {self.tokens} tokens that it wrote are what its weights"
            " say."
        )
        return f"{text} {self.silent}" if self.silent else text


TRAINED_HERE = "the adapter trained by this recipe"
"""What an artifact calls an adapter that its own recipe trains: it has no name anywhere else."""


class Merged(Frozen):
    """The adapters in a model; nothing in it names a path of this machine."""

    adapters: tuple[str, ...] = Field(description="Hub ids, bare names of local folders, or TRAINED_HERE.")
    revisions: tuple[str, ...] = Field((), description="The commit of each, empty for a folder.")
    weights: tuple[float, ...] = Field(description="How much of each was added.")
    into: str = Field(description="original, or nf4 or fp4: the weights that 4 bits have left.")
    double_quant: bool = Field(False, description="Whether the scales of these were quantized too.")


class Training(Frozen):
    """How an adapter was trained, and on what; nothing in it names a path of this machine."""

    dataset: str = Field(description="Hub id, bare name of a file, or demo.")
    dataset_revision: str | None = Field(None, description="Its commit, where there is one.")
    rows: int = Field(description="Rows trained on.")
    validation_rows: int = Field(description="Rows measured on.")
    tokens: int = Field(description="Of the rows trained on.")
    learned_tokens: int = Field(description="Those that counted for the loss.")
    steps: int
    planned_steps: int
    train_loss: float = Field(description="Mean over the training, nats a token.")
    eval_loss_before: float | None = Field(None, description="On the validation rows, before the training.")
    eval_loss: float | None = Field(None, description="The same with the adapter.")
    stopped: str | None = Field(None, description="Why it ended early.")

    @property
    def words(self) -> str:
        """What it has changed, for a person."""
        text = f"{self.steps} steps on {self.rows} rows, mean loss {self.train_loss:.3f}"
        if self.eval_loss is not None:
            text += f"; validation loss {self.eval_loss_before:.3f} before, {self.eval_loss:.3f} after"
        return f"{text}. {self.stopped}" if self.stopped else text


ELSEWHERE = "elsewhere"
"""The stage of an artifact that was made from a folder of weights as it was found."""


class Artifact(Frozen):
    """What `artifact.json` says; nothing in it names a path of this machine."""

    kind: str = Field(description="model, adapter, merged, quantized, evaluation or published.")
    stage: str = Field(description="The stage that made it: fetch, quantize, …; ELSEWHERE where none here did.")
    base_model: str | None = Field(None, description="The Hub id of the base model; None where it has none.")
    revision: str | None = Field(None, description="The commit of the base model, where there is one.")
    origin: str | None = Field(None, description="Where the weights came from, if not from that commit, in words.")
    merged: Merged | None = Field(None, description="The adapters that were merged into the base model before.")
    training: Training | None = Field(None, description="How the adapter was trained, or the one that was merged.")
    calibration: str | None = Field(None, description="What a calibrated quantization read, and how much of it.")
    layouts: tuple[str, ...] | None = Field(None, description="That this calibration was written in, if several.")
    options: dict[str, Any] = Field(default_factory=dict, description="The stage's as run; of ELSEWHERE its files'.")
    quantized_share: float | None = Field(
        None, description="Of a mixture whose experts stayed as they were, the share of its parameters that did not."
    )
    versions: dict[str, str] = Field(default_factory=dict)
    hardware: str | None = None
    seconds: float | None = Field(None, description="Wall time of the stage.")
    peak_memory_bytes: int | None = Field(None, description="Peak resident memory of the stage's process.")
    created: str = Field(description="UTC, ISO 8601.")
    warnings: tuple[str, ...] = Field((), description="What a user of the result must know.")
    metrics: Metrics | None = None
    check: Check | None = Field(None, description="None: it was not tried.")
    files: dict[str, File] = Field(default_factory=dict, description="Every file but this one.")

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())

    @property
    def again(self) -> str:
        """What to do where its files are not what they were."""
        return "give the folder again" if self.stage == ELSEWHERE else "make the artifact again"


PACKAGES = ("torch", "transformers", "bitsandbytes", "accelerate", "safetensors")


def is_of_a_folder(manifest: Mapping[str, Any]) -> bool:
    """Return whether an adapter's manifest says that it was tuned on a local folder, whose bare name it has kept."""
    return manifest.get("stage") == "finetune" and manifest.get("base_model") is None


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Return the versions that a result depends on, without importing anything."""
    found = {"weightsmith": __version__, "python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def now() -> str:
    """Return the time as artifacts write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
