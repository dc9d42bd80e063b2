"""Transfer: one file of the Hub, verified, and whether the disk has room for it."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from backend.disk import free_bytes, sha256
from backend.errors import HardwareError, HubError
from backend.hub.files import Entry, HubFiles
from backend.strict_json import quoted

SPARE = 0.01  # of what is written, for logs and the file system's own


def check_disk(folder: Path, need: int, to_do: str) -> None:
    """Refuse what does not fit the disk of a folder, which need not exist yet; see check_free()."""
    check_free(free_bytes(folder), need, to_do)


def check_free(free: int, need: int, to_do: str) -> None:
    """Refuse what does not fit, before anything is written.

    Args:
        free: Bytes.
        need: Bytes.
        to_do: What for, as in "Could not {to_do}".

    Raises:
        HardwareError: What is needed, what is free, and what to do.
    """
    need = int(need * (1 + SPARE))
    if need > free:
        raise HardwareError(
            f"Could not {to_do}. It needs {size_words(need)} and {size_words(free)} are free: free"
            f" {size_words(need - free)}, for example by deleting jobs in the page."
        )


def size_words(count: int) -> str:
    """Write bytes in decimal units, as the Hub does."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def fetch_file(files: HubFiles, entry: Entry, folder: Path, tell: Callable[[int], None]) -> str:
    """Download one file and compare it with the hash that the Hub lists; a wrong one is fetched once more.

    Args:
        files: The repo.
        entry: The file.
        folder: Where it is written, under its name; what a killed download left there is gone on from.
        tell: Receives how many bytes of it are there.

    Returns:
        Its sha256.

    Raises:
        HubError: The file, what was expected and what came.
    """
    path = folder / entry.name
    path.parent.mkdir(parents=True, exist_ok=True)
    found = expected = ""
    for _ in range(2):
        _get(files, entry, path, tell)
        found, expected = _hash(path, entry)
        if not expected or found == expected:
            return found if entry.sha256 else sha256(path)
        path.unlink()
    raise HubError(
        f"{quoted(entry.name)} of '{files.repo_id}' came damaged twice: {found[:12]}… instead of {expected[:12]}…. Try"
        " again later."
    )


def _get(files: HubFiles, entry: Entry, path: Path, tell: Callable[[int], None]) -> None:
    from backend.hub import client

    with path.open("ab", buffering=0) as out:  # a full disk is felt at the write, not when the file is closed
        if out.tell() > entry.size:
            out.truncate(0)

        def go_on() -> None:
            for chunk in client.chunks(files, entry.name, out.tell(), entry.size):
                while chunk:
                    chunk = chunk[out.write(chunk) :]
                tell(out.tell())

        while (there := out.tell()) < entry.size:
            try:
                client.ask(go_on, files.repo_id, files.token)
            except HubError:
                if out.tell() == there:  # a connection that drops now and then still gets there
                    raise
            if out.tell() == there:
                raise HubError(f"The Hub sends no more of {quoted(entry.name)} of '{files.repo_id}': try again later.")


def _hash(path: Path, entry: Entry) -> tuple[str, str]:
    """Return the hash of what came and the listed one: sha256 in LFS, git's own elsewhere."""
    if entry.sha256 or not entry.git_sha1:
        return sha256(path), entry.sha256 or ""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest(), entry.git_sha1
