"""The convert step: a model whose weights are pickled becomes one with safetensors, before anything else reads it.

It runs where there is neither network nor token. A download is replaced; a folder of the user's stays as it is.
"""

import shutil
from pathlib import Path

from backend.artifacts.artifact import MANIFEST, Artifact, now
from backend.artifacts.sealing import is_sealed, open_artifact, partial, seal
from backend.hub.files import LocalFiles
from backend.models.admission import admit
from backend.models.config import as_kept
from backend.models.fetch import PICKLED, check_model
from backend.models.inspection import read_pickles
from backend.progress import Report
from backend.spec import CONVERT
from backend.stages.step import Need, Planned, Step
from backend.stages.work import Work
from backend.weights.conversion import conversion, convert
from backend.weights.output import Resumable

CONVERT_BYTES, CONVERT_SECONDS = 250_000_000, 3.0  # Python with torch


def run(work: Work, token: str | None, report: Report) -> None:
    """Convert the base model where its weights are pickled; the step's own folder says that this is done."""
    places = work.fetched
    if places.pickled:
        convert_model(places.pickled, places.folder, report)
    work.seal(Artifact(kind="model", stage=CONVERT, created=now()))


def need(stage: None, planned: Planned) -> Need:
    """Estimate a conversion: weights are read, written, hashed and forced to the disk."""
    facts, speed = planned.facts, planned.speed
    seconds = CONVERT_SECONDS + facts.size * (1 / speed.rate("cast") + 1 / speed.hash + 1 / speed.write)
    return Need(CONVERT_BYTES + facts.pickled_memory, planned.around + seconds)


def converted(source: Path, job: Path) -> Path:
    """Return where what a folder with pickled weights becomes lies: beside a download, else in the job's folder."""
    waits = f"-{PICKLED}"
    return (
        source.with_name(source.name.removesuffix(waits))
        if source.name.endswith(waits)
        else job / CONVERT / source.name
    )


def convert_model(source: Path, target: Path, report: Report) -> None:
    """Convert a model; a killed run goes on after the last file that it finished.

    Args:
        source: The folder with its pickled weights; a download is removed at the end.
        target: The folder that is sealed.
        report: Receives the bytes.

    Raises:
        SpecError: A file holds something else than plain tensors.
    """
    from huggingface_hub.utils._fixes import WeakFileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(target.with_name(f"{target.name}.lock")):
        if not is_sealed(target):
            _convert(source, target, report)
        if source.parent == target.parent:
            shutil.rmtree(source, ignore_errors=True)


def _convert(source: Path, target: Path, report: Report) -> None:
    files = LocalFiles(source)
    admitted = admit(files, whole=True)
    pickled = read_pickles(files, admitted)
    folder = partial(target, keep=True)
    output = Resumable(folder)
    convert(source, pickled, conversion(pickled, admitted.config.data), output, report)
    for entry in admitted.beside:
        if entry.name != "config.json":
            (folder / entry.name).write_bytes(as_kept(entry.name, (source / entry.name).read_bytes()))
    check_model(folder)
    known = open_artifact(source) if (source / MANIFEST).is_file() else Artifact(kind="model", stage="", created=now())
    artifact = seal(folder, target, known.model_copy(update={"kind": "model", "stage": CONVERT}), output.hashes)
    report.log(f"converted: {artifact.size / 1e6:.0f} MB of safetensors.")


STEP = Step(run, need=need, alone=True, repeats=True)
