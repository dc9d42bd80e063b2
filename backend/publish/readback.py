"""Holdings: what a repo holds at a commit, compared with what it is to hold."""

import hashlib
from collections.abc import Mapping

from huggingface_hub.hf_api import RepoFile

from backend.publish.destination import HUBS_OWN
from backend.publish.files import OutgoingFile

Files = Mapping[str, OutgoingFile]


def extra(files: Files, there: list[RepoFile]) -> list[str]:
    """Name the files of a repo that are not to be there."""
    return sorted(file.path for file in there if file.path not in files and file.path not in HUBS_OWN)


def differences(files: Files, there: list[RepoFile]) -> list[str]:
    """Name the files whose size or hash is not what was to be sent, or that are missing or extra."""
    found = {file.path: file for file in there}
    return sorted([*extra(files, there), *(name for name, file in files.items() if not _same(file, found.get(name)))])


def _same(file: OutgoingFile, remote: RepoFile | None) -> bool:
    if remote is None or remote.size != file.size:
        return False
    if remote.lfs:
        return remote.lfs.sha256 == file.sha256
    return file.source is not None and remote.blob_id == _git_blob(file.read())


def _git_blob(data: bytes) -> str:
    """Return git's name for a file: sha1 over a header and the content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
