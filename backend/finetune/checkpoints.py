"""Checkpoints: a training's state on the disk, sealed when every byte is written; resuming picks the newest such."""

import json
import shutil
from pathlib import Path

from backend.disk import fsync, read_whole, sha256, write_whole

SEAL = "sealed.json"
PREFIX = "checkpoint-"

LOSSES = "losses.json"
"""The sum of the losses of all steps so far, which transformers forgets when it goes on from a checkpoint."""


def seal_checkpoint(folder: Path) -> None:
    """Write down the hashes of a checkpoint's files; from then on it counts.

    Args:
        folder: `checkpoint-<step>`, complete.
    """
    hashes = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != SEAL}
    for path in folder.iterdir():
        fsync(path)
    write_whole(folder / SEAL, json.dumps(hashes, indent=2))
    fsync(folder.parent)


def read_losses(checkpoint: Path) -> float | None:
    """Return the sum of the losses of all steps until a checkpoint; None where it was not kept."""
    return read_whole(checkpoint / LOSSES, float)


def newest_sealed(folder: Path) -> Path | None:
    """Return the newest checkpoint that is whole, or None; one that was half written, cut or changed is passed over."""
    return next((path for path in reversed(checkpoints(folder)) if is_sealed(path)), None)


def is_sealed(checkpoint: Path) -> bool:
    """Return whether every file of a checkpoint is there as it was written."""
    hashes = read_whole(checkpoint / SEAL, dict[str, str])
    try:
        return bool(hashes) and all(sha256(checkpoint / name) == found for name, found in (hashes or {}).items())
    except (OSError, ValueError):  # a file is missing; a name that no file can have
        return False


def checkpoints(folder: Path) -> list[Path]:
    """Return all checkpoints of a training, whole or not, oldest first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the step that a checkpoint was made after."""
    return int(checkpoint.name.removeprefix(PREFIX))


def forget(folder: Path, best: Path | None, keep: int = 2) -> None:
    """Remove all but the newest checkpoints and the best one.

    Args:
        folder: Of the training.
        best: The one with the lowest validation loss, if any.
        keep: How many of the newest stay: more than one, for the newest may turn out to be damaged.
    """
    for checkpoint in checkpoints(folder)[:-keep]:
        if checkpoint != best:
            shutil.rmtree(checkpoint, ignore_errors=True)
