"""Uploads: copies of what was uploaded, each owner's apart, for as long as a job may read them."""

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from backend.disk import PARTIAL, fsync
from backend.errors import HardwareError, SpecError
from backend.settings import Settings

UNUSED_SECONDS = 3600
"""How long an upload stays that no job needs: a recipe that reads it may be about to start."""


class Uploads:
    """The uploads in a data folder; every method may be called from any thread.

    Args:
        settings: Say where they lie, and how large one may be.
    """

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.data.resolve() / "uploads"
        self._most = settings.max_upload_bytes
        self._lock = threading.Lock()

    def keep(self, upload: Path, owner: str) -> Path:
        """Return an upload a place where jobs may still read it tomorrow: a second name, or elsewhere a copy.

        Args:
            upload: Where it lies until Gradio deletes it, an hour after its last use.
            owner: Whose it is.

        Raises:
            SpecError: It is too large, or has gone.
            HardwareError: There is no room for it.
        """
        try:
            if upload.stat().st_size > self._most:
                raise SpecError(f"'{upload.name}' is larger than {self._most} bytes: give a part of it.")
            with upload.open("rb") as f:
                digest = hashlib.file_digest(f, "sha256").hexdigest()
            target = self._of(owner) / digest[:32] / upload.name
            with self._lock:
                if not target.exists() or target.stat().st_size != upload.stat().st_size:  # a crash has cut a copy
                    _link(upload, target)
                for path in (upload, target):
                    os.utime(path)  # it is in use
        except FileNotFoundError as e:
            raise SpecError(f"'{upload.name}' was deleted, an hour after it was last used: upload it again.") from e
        except OSError as e:
            raise HardwareError(f"Could not keep '{upload.name}' for the job. {e.strerror}: free some disk.") from e
        return target

    def of(self, owner: str) -> list[Path]:
        """Return what is kept of an owner's."""
        return _files(self._of(owner))

    def clean(self, needed: Collection[str]) -> None:
        """Delete what no job needs and was not used for a while; what a killed app has left of a copy, too.

        Args:
            needed: The paths that jobs may still read.
        """
        with self._lock:
            for path in _files(self._folder):
                if str(path) not in needed and time.time() - path.stat().st_mtime > UNUSED_SECONDS:
                    path.unlink()
            for folder, _, _ in os.walk(self._folder, topdown=False):
                with suppress(OSError):  # something lies in it
                    os.rmdir(folder)

    def _of(self, owner: str) -> Path:
        return self._folder / hashlib.sha256(owner.encode()).hexdigest()[:32]


def _files(folder: Path) -> list[Path]:
    return [Path(place) / name for place, _, names in os.walk(folder) for name in names]


def _link(upload: Path, target: Path) -> None:
    """Put an upload at its place, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(target.name + PARTIAL)
    draft.unlink(missing_ok=True)
    try:
        os.link(upload, draft)
    except OSError:  # another disk, or one without links
        shutil.copyfile(upload, draft)
    fsync(draft)
    draft.replace(target)
