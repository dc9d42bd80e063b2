"""Download: a pinned commit of a model becomes a sealed folder, whole and verified, or nothing."""

import hashlib
import shutil
from pathlib import Path

from backend.artifacts.artifact import Artifact, now, versions
from backend.artifacts.sealing import is_sealed, seal
from backend.disk import PARTIAL
from backend.errors import SpecError
from backend.hub.files import Entry, HubFiles, LocalFiles, PartlyHere
from backend.hub.ids import DEMO, is_local
from backend.hub.transfer import check_disk, fetch_file
from backend.models.admission import admit
from backend.models.config import is_settings, leave_code_behind
from backend.models.demo import demo_folder
from backend.models.inspection import read_tensors
from backend.progress import Report
from backend.strict_json import quoted

TOKENIZER = "tokenizer"  # the kind of a folder that holds a model's small files
PICKLED = "pickled"  # the kind of one whose weights wait for their conversion


def fetch_model(
    model: str, commit: str | None, models_dir: Path, token: str | None, report: Report, converts: bool = False
) -> Path:
    """Return the folder of a model, downloading it if it does not lie here yet.

    A killed download goes on from its last byte; the access is checked also when nothing is missing.

    Args:
        model: `demo`, a repo id, or the absolute path of a local folder.
        commit: The commit of a Hub model, from resolve(); None for the others.
        models_dir: Where models lie.
        token: The caller's Hub token.
        report: Receives the bytes.
        converts: Whether pickled weights are taken too: the folder holds them until they are converted.

    Raises:
        SpecError: The model is refused; the file, the field, what to do.
        HubError: The Hub refused, could not be reached, or sent something else than it had announced.
        HardwareError: The disk is too small, with both figures.
    """
    if model == DEMO:
        return demo_folder(models_dir, report)
    if is_local(model):
        check_model(Path(model), converts)
        return Path(model)
    from huggingface_hub.utils._fixes import WeakFileLock

    from backend.hub import client

    client.check_access(model, token)
    files = HubFiles(model, commit or client.resolve(model, None, token), token)
    target = model_folder(models_dir, model, files.commit)
    target.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(target.with_name(f"{files.commit}.lock")):
        if is_sealed(target):
            return target
        admitted = admit(files)
        if admitted.pickled:
            _check_converts(model, converts)
            target = target.with_name(f"{files.commit}-{PICKLED}")
        if not is_sealed(target):
            take_apart(target)
            kind = PICKLED if admitted.pickled else "model"
            download(files, admitted.files, target, downloaded(model, files.commit, kind), report)
    return target


def fetch_tokenizer(model: str, commit: str | None, models_dir: Path, token: str | None, report: Report) -> Path:
    """Return a folder with a Hub model's tokenizer and configs; no weights are downloaded for it.

    Args:
        model: A repo id.
        commit: Its commit.
        models_dir: Where models lie.
        token: The caller's Hub token.
        report: Receives the bytes.

    Raises:
        SpecError, HubError, HardwareError: As fetch_model(); a model that it would refuse is refused here.
    """
    from huggingface_hub.utils._fixes import WeakFileLock

    from backend.hub import client

    client.check_access(model, token)
    files = HubFiles(model, commit or client.resolve(model, None, token), token)
    whole = model_folder(models_dir, model, files.commit)
    target = whole.with_name(f"{files.commit}-tokenizer")
    target.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(whole.with_name(f"{files.commit}.lock")):
        if is_sealed(whole):
            return whole
        if not is_sealed(target):
            take_apart(target)
            download(files, admit(files).beside, target, downloaded(model, files.commit, TOKENIZER), report)
    return target


def take_apart(target: Path) -> None:
    """Make of a sealed folder that is damaged one that a download goes on with: what is whole in it stays."""
    if target.is_dir():
        folder = target.with_name(target.name + PARTIAL)
        shutil.rmtree(folder, ignore_errors=True)
        target.rename(folder)


def model_folder(models_dir: Path, model: str, commit: str) -> Path:
    """Return where a commit of a Hub model lies, or would lie."""
    return models_dir / model.replace("/", "--") / commit


def downloaded(repo_id: str, commit: str | None, kind: str = "model") -> Artifact:
    """Return what is recorded of a Hub model, or of an adapter."""
    return Artifact(kind=kind, stage="fetch", base_model=repo_id, revision=commit, versions=versions(), created=now())


def download(files: HubFiles, wanted: tuple[Entry, ...], target: Path, artifact: Artifact, report: Report) -> None:
    """Download files of a repo into a sealed folder; what a killed download left is gone on from.

    Args:
        files: The repo.
        wanted: What is taken of it.
        target: The folder; it must not exist.
        artifact: From downloaded().
        report: Receives the bytes.
    """
    folder = target.with_name(target.name + PARTIAL)
    folder.mkdir(exist_ok=True)
    there = sum((folder / e.name).stat().st_size for e in wanted if (folder / e.name).is_file())
    total = sum(e.size for e in wanted)
    check_disk(folder, total - there, f"download '{files.repo_id}'")
    hashes, done = {}, 0

    def tell(n: int) -> None:
        report.progress("downloading", done + n, total, "bytes")

    for entry in wanted:
        hashes[entry.name] = fetch_file(files, entry, folder, tell)
        done += entry.size
        report.progress("downloading", done, total, "bytes")
    for entry in wanted:
        if is_settings(entry.name):
            hashes[entry.name] = hashlib.sha256(leave_code_behind(folder / entry.name)).hexdigest()
    if artifact.kind in ("model", PICKLED):
        check_model(folder, artifact.kind == PICKLED)
    elif artifact.kind == TOKENIZER:
        admit(PartlyHere(files, folder), whole=True)
    seal(folder, target, artifact, hashes)


def check_model(folder: Path, converts: bool = False) -> None:
    """Admit what lies on the disk, tokenizers and headers included: it is what will be loaded.

    Args:
        folder: Of the model.
        converts: Whether pickled weights are taken too.
    """
    files = LocalFiles(folder)
    admitted = admit(files, whole=True)
    if admitted.pickled:
        _check_converts(folder.name, converts)
    read_tensors(files, admitted)


def _check_converts(model: str, converts: bool) -> None:
    if not converts:
        raise SpecError(
            f"{quoted(model)} has pickled weights, which only a job converts: make safetensors of them with"
            " `python -m backend quantize MODEL --method cast --output DIR`, and choose that."
        )
