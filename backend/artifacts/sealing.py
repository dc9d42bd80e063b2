"""Sealing: a folder becomes an artifact, whole or not at all, and is opened and compared again."""

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from pydantic import ValidationError

from backend.artifacts.artifact import CHECKPOINTS, MANIFEST, RESUMED, Artifact, Check, File, Metrics
from backend.disk import JOURNAL, PARTIAL, fsync, replace_folder, sha256, write_whole
from backend.errors import SpecError

ROOM = 16384
"""Bytes in a manifest for what only a run can tell, so that its size is known before, and measuring leaves it."""


def partial(target: Path, keep: bool = False) -> Path:
    """Return the folder that `target` is written to until it is sealed.

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
    """Rename a folder whose manifest is written to its final name, as seal() does at its end."""
    replace_folder(folder, target)
    forget_resumed(target)


def forget_resumed(folder: Path) -> None:
    """Remove from a sealed folder what its making could have gone on from."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    (folder / JOURNAL).unlink(missing_ok=True)


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
    """Return whether the folder exists as an artifact."""
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
    """Return the bytes that `artifact.json` will have.

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
