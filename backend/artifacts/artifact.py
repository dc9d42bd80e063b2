"""Artifact: a sealed folder of weights, config, tokenizer, recipe and `artifact.json`, which remembers how it was made.

Sealed means: written to a `.partial` folder, fsynced, manifest last, renamed. A folder without a valid manifest does
not exist.
"""

import json
import platform
import shutil
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, ValidationError

from backend import __version__
from backend.disk import PARTIAL, fsync, replace_folder, sha256, write_whole
from backend.errors import SpecError
from backend.options import Frozen

MANIFEST = "artifact.json"
ROOM = 16384
"""Bytes in a manifest for what only a run can tell, so that its size is known before, and measuring leaves it."""

BASE_CARD, SURVEY, METRICS, SAMPLES = "base_card.json", "survey.json", "metrics.jsonl", "samples.jsonl"
UNPUBLISHED = frozenset({BASE_CARD, SURVEY, METRICS, SAMPLES})
"""Files that lie in an artifact for the page and the card, and never leave: rows of a user's stand in some of them."""

LOGS = "logs"
"""The folder in an artifact where TensorBoard or Trackio wrote; it never leaves either."""

JOURNAL, CHECKPOINTS = "progress.json", "checkpoints"
RESUMED = (JOURNAL, CHECKPOINTS)
"""What a killed run goes on from: it lies in a `.partial` folder until that is sealed, and is no part of the result."""


def stays_here(name: str) -> bool:
    """Whether a file of an artifact, by its relative name, is for this machine alone."""
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
    answers: tuple[Answer, ...] = Field((), description="Of both to the same prompts.")
    tokens_per_second: float | None = Field(
        None,
        description="That the result writes alone, one after the other, on the artifact's hardware.",
    )
    reference_tokens_per_second: float | None = Field(None, description="The same of the reference.")
    engine: str = Field("transformers", description="That was timed writing both.")


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
    reason: str | None = Field(None, description="Why it failed.")


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


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Give the versions that a result depends on, without importing anything."""
    found = {"weightsmith": __version__, "python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def now() -> str:
    """Give the time as artifacts write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def partial(target: Path, keep: bool = False) -> Path:
    """Give the folder that `target` is written to until it is sealed.

    Args:
        target: Does not exist yet.
        keep: Whether what a killed run left in it stays; else it is empty.
    """
    folder = target.with_name(target.name + PARTIAL)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=keep)
    return folder


def seal(folder: Path, target: Path, artifact: Artifact, known: Mapping[str, str] | None = None) -> Artifact:
    """Make a `.partial` folder an artifact: hash, fsync, manifest last, rename.

    Args:
        folder: The folder to seal; symbolic links in it are refused, and RESUMED goes when it is sealed.
        target: What it is called from then on; what has that name goes when this has taken its place.
        artifact: What is known of it; `files` is filled in here.
        known: sha256 of files whose hash was just computed or verified, by relative name.
    """
    files = {}
    for draft in folder.rglob(f"*{PARTIAL}"):
        draft.unlink()  # of a file that a killed run was writing
    for path in sorted(p for p in folder.rglob("*") if p.is_symlink() or p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name == MANIFEST or name.split("/")[0] in RESUMED:
            continue
        if path.is_symlink():
            raise SpecError(f"'{path.name}' is a symbolic link: an artifact holds files only.")
        if path.stat().st_nlink == 1:  # what lies elsewhere too keeps the mode that it has there
            path.chmod(0o644)  # safetensors writes 0600, which another user of the folder could not read
        files[name] = File(size=path.stat().st_size, sha256=(known or {}).get(name) or sha256(path))
        fsync(path)
    sealed = artifact.model_copy(update={"files": files})
    write_manifest(folder, sealed)
    put_in_place(folder, target)
    return sealed


def put_in_place(folder: Path, target: Path) -> None:
    """Give a folder whose manifest is written its name, as seal() does at its end."""
    replace_folder(folder, target)
    forget_resumed(target)


def forget_resumed(folder: Path) -> None:
    """Remove from a sealed folder what its making could have gone on from."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    (folder / JOURNAL).unlink(missing_ok=True)


def weights_bytes(folder: Path) -> int:
    """Give the bytes of the weights in a model folder; 0 where there are none."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def open_artifact(folder: Path, elsewhere: Collection[str] = ()) -> Artifact:
    """Read an artifact and check that its files are there with their sizes; see verify() for their contents.

    Args:
        folder: Where it lies.
        elsewhere: Files of it that are known to be somewhere else.

    Raises:
        SpecError: The folder is not a sealed artifact, and why.
    """
    path = folder / MANIFEST
    try:
        artifact = Artifact.model_validate_json(path.read_bytes())
    except FileNotFoundError as e:
        raise SpecError(
            f"'{folder.name}' is not an artifact: it has no {MANIFEST}. Choose a folder made by a stage."
        ) from e
    except (OSError, ValidationError) as e:
        raise SpecError(f"'{folder.name}/{MANIFEST}' cannot be read: make the artifact again.") from e
    for name, file in artifact.files.items():
        if name in elsewhere:
            continue
        size = _size_within(folder, name)
        if size is None:
            raise SpecError(f"'{folder.name}' lacks the file '{name}': {artifact.again}.")
        if size != file.size:
            raise SpecError(f"'{name}' in '{folder.name}' has {size} bytes, not {file.size}: {artifact.again}.")
    return artifact


def _size_within(folder: Path, name: str) -> int | None:
    """Return the bytes of a file of a folder; None where there is none, or its name leads out of the folder."""
    try:
        inside = (folder / name).resolve()
        return inside.stat().st_size if inside.is_relative_to(folder.resolve()) and inside.is_file() else None
    except (OSError, ValueError):  # a name that no file can have
        return None


def is_sealed(folder: Path) -> bool:
    """Whether the folder exists as an artifact."""
    try:
        open_artifact(folder)
    except SpecError:
        return False
    return True


def whole(folder: Path) -> Artifact | None:
    """Return the artifact in a folder, if every byte of it is as it was sealed."""
    try:
        return verify(folder)
    except (SpecError, OSError):
        return None


def verify(folder: Path) -> Artifact:
    """Open an artifact and compare every file with its sha256.

    Raises:
        SpecError: A file differs; its name and both hashes.
    """
    artifact = open_artifact(folder)
    for name, file in artifact.files.items():
        found = sha256(folder / name)
        if found != file.sha256:
            raise SpecError(
                f"'{name}' in '{folder.name}' has changed, sha256 {found[:12]}…, not {file.sha256[:12]}…:"
                f" {artifact.again}."
            )
    return artifact


def record(folder: Path, **found: Metrics | Check) -> Artifact:
    """Write what was found out about a sealed artifact into it, whole or not at all: its metrics, or its check."""
    artifact = open_artifact(folder).model_copy(update=found)
    write_manifest(folder, artifact)
    return artifact


def manifest(artifact: Artifact) -> bytes:
    """Write `artifact.json`, filled up with spaces to a size that depends on nothing a run finds out."""
    return _json(artifact).ljust(_size(artifact) - 1) + b"\n"


def manifest_size(artifact: Artifact, files: Mapping[str, int]) -> int:
    """Give the bytes that `artifact.json` will have.

    Args:
        artifact: What is known of it.
        files: Bytes of every other file.
    """
    entries = {name: File(size=files[name], sha256="0" * 64) for name in files}
    return _size(artifact.model_copy(update={"files": entries}))


def _size(artifact: Artifact) -> int:
    unknown = {"hardware": None, "seconds": None, "peak_memory_bytes": None, "warnings": (), "metrics": None}
    unknown |= {"check": None, "quantized_share": None}
    unknown |= {"merged": None, "training": None, "calibration": None}  # read from the adapters, and from the rows
    return len(_json(artifact.model_copy(update=unknown))) + ROOM


def _json(artifact: Artifact) -> bytes:
    return json.dumps(artifact.model_dump(mode="json", exclude_none=True), indent=2, ensure_ascii=False).encode()


def write_manifest(folder: Path, artifact: Artifact) -> None:
    """Write artifact.json, whole or not at all."""
    write_whole(folder / MANIFEST, manifest(artifact))
