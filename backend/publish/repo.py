"""Repo: one repo on the Hub that one artifact goes to: claimed, written in one commit, read back.

A commit whose reply was lost is never sent blindly again: what the Hub holds decides. Files can be sent ahead of it, as
huggingface_hub's `preupload_lfs_files` does, and need not lie here any more when it is made.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.lfs import UploadInfo
from pydantic import Field

from backend import __version__
from backend.errors import AppError, HubError, LoginError
from backend.hub import client
from backend.options import Frozen
from backend.progress import Report
from backend.publish.destination import HUBS_OWN, TOKENS_PAGE, is_empty, taken
from backend.publish.outgoing import OutgoingFile

PAUSE = 1.0  # seconds before a commit is sent again
SMALL = 1_000_000  # bytes; smaller files go up together

_FAULTS = (httpx2.HTTPError, OSError, ValueError, RuntimeError)  # of huggingface_hub and hf_xet, each in its own dress


class Published(Frozen):
    """Where an artifact went."""

    location: str = Field(description="The repo's address, or the folder.")
    commit: str | None = Field(None, description="The commit on the Hub.")
    files: tuple[str, ...]
    verified: bool = Field(description="Whether size and sha256 of every file were compared with what was to be sent.")


Files = Mapping[str, OutgoingFile]


class Repo:
    """A repo that one artifact goes to.

    Args:
        repo_id: As parse_repo_id() gives it.
        private: Whether it is, or is made so.
        token: Of whom publishes.
    """

    def __init__(self, repo_id: str, private: bool, token: str) -> None:
        self.repo_id, self.private, self.token = repo_id, private, token
        self.api = client.api(token)
        self.url = f"{client.endpoint()}/{repo_id}"

    def claim(self, files: Files | None = None) -> str:
        """Make the repo, or take one that is there, as private as asked, and empty; give its head commit.

        Args:
            files: What goes there, if that is known yet: a repo that holds exactly this is taken too.

        Raises:
            AppError: The name is taken, or the Hub refuses.
        """
        try:
            self.api.create_repo(self.repo_id, private=self.private, exist_ok=False)
        except _FAULTS as e:
            if not (_status(e) == 409 or _unsure(e)):
                raise self._refusal(e) from e
            parent = self._ours(files)
            if parent is None:
                raise (taken(self.repo_id) if _status(e) == 409 else self._refusal(e)) from e
            return parent
        return client.resolve(self.repo_id, None, self.token)

    def send_ahead(self, name: str, path: Path) -> None:
        """Send a large file ahead of the commit that names it; what is there already is not sent again.

        Raises:
            AppError: The Hub refuses, cannot be reached, or would have the file in the commit itself.
        """
        operation = CommitOperationAdd(name, path)
        try:
            self.api.preupload_lfs_files(self.repo_id, [operation], free_memory=False)
        except _FAULTS as e:
            raise self._refusal(e, made=True) from e
        if not operation._is_uploaded:
            raise HubError(f"Could not publish to '{self.repo_id}'. The Hub does not take '{name}' as a large file.")

    def finish(self, files: Files, parent: str, report: Report) -> Published:
        """Send what was not sent ahead, make the one commit, and compare what the Hub then holds.

        Args:
            files: Everything that the repo is to hold, by name.
            parent: The commit that claim() gave.
            report: Told the bytes sent.

        Raises:
            AppError: The Hub refuses, cannot be reached, or holds something else than was sent.
        """
        if not self._differences(files, parent):
            report.log(f"{self.url} holds exactly this already.")
            return self._published(files, parent)
        try:
            operations = self._upload(files, report)
            commit = self._commit(operations, parent)
        except _FAULTS as e:
            raise self._refusal(e, made=True) from e
        report.log("Reading back what the Hub holds.")
        if wrong := self._differences(files, commit):
            raise HubError(
                f"Could not publish to '{self.repo_id}'. The Hub holds something else than was sent:"
                f" {', '.join(wrong)}. Delete the repo at {self.url}/settings and publish again."
            )
        return self._published(files, commit)

    def _ours(self, files: Files | None) -> str | None:
        """Give the head of a repo that is empty, or holds exactly these files, and is as private as asked."""
        try:
            info = client.model_info(self.repo_id, None, self.token)
        except HubError:
            return None
        head = client.commit_of(info, self.repo_id)
        ours = is_empty(info) or (files is not None and not self._differences(files, head))
        return head if ours and bool(info.private) == self.private else None

    def _upload(self, files: Files, report: Report) -> list[CommitOperationAdd]:
        """Send the large files ahead; a file that is there already is not sent again."""
        operations = {name: _operation(name, file) for name, file in files.items()}
        here = {name: file.size for name, file in files.items() if file.source is not None}
        small = [name for name, size in here.items() if size < SMALL]
        total, done = sum(here.values()), 0
        report.progress("uploading", done, total, "bytes")
        for batch in [small, *([name] for name in here if name not in small)]:
            self.api.preupload_lfs_files(self.repo_id, [operations[name] for name in batch], free_memory=False)
            done += sum(here[name] for name in batch)
            report.progress("uploading", done, total, "bytes")
        return list(operations.values())

    def _commit(self, operations: list[CommitOperationAdd], parent: str) -> str:
        """Send the one commit; when nobody knows whether it arrived, look, and send it once more only if it did not."""
        for last in (False, True):
            try:
                return self._send(operations, parent)
            except _FAULTS as e:
                if not _unsure(e):
                    raise
                head = self._head()
                if head != parent:
                    return head
                if last:
                    raise
            time.sleep(PAUSE)
        raise AssertionError("the last try returns or raises")

    def _head(self) -> str:
        try:
            return client.resolve(self.repo_id, None, self.token)
        except HubError as e:
            raise type(e)(
                f"Nobody can tell whether '{self.repo_id}' was published. {e} Publish again then: what has arrived is"
                " not sent twice."
            ) from e

    def _send(self, operations: list[CommitOperationAdd], parent: str) -> str:
        message = f"Publish with Weightsmith {__version__}"
        return self.api.create_commit(self.repo_id, operations, commit_message=message, parent_commit=parent).oid

    def _differences(self, files: Files, commit: str) -> list[str]:
        """Name the files whose size or hash on the Hub is not what was to be sent, or that are missing or extra."""
        there = {file.path: file for file in client.list_files(self.repo_id, commit, self.token)}
        wrong = [name for name in there if name not in files and name not in HUBS_OWN]
        for name, file in files.items():
            remote = there.get(name)
            if remote is None or remote.size != file.size:
                wrong.append(name)
            elif remote.lfs:
                wrong += [name] if remote.lfs.sha256 != file.sha256 else []
            elif file.source is None or remote.blob_id != _git_blob(file.read()):
                wrong.append(name)
        return sorted(wrong)

    def _published(self, files: Files, commit: str) -> Published:
        return Published(location=self.url, commit=commit, files=tuple(files), verified=True)

    def _refusal(self, error: Exception, made: bool = False) -> AppError:
        """Put a refused write into words.

        Args:
            error: What huggingface_hub raised.
            made: Whether the repo has been made, and stays.
        """
        why, kind = self._why(error)
        stays = made and _status(error) != 412
        kept = f"The empty {'private ' if self.private else ''}repo {self.url} remains; publishing to it again uses it."
        return kind(f"Could not publish to '{self.repo_id}'. {why}{' ' + kept if stays else ''}")

    def _why(self, error: Exception) -> tuple[str, type[AppError]]:
        status, said = _status(error), " ".join(str(error).split())[:300]
        if status == 403:
            return f"Your token may not write there: allow it at {TOKENS_PAGE}, or choose another name.", LoginError
        if status == 402:
            return (
                "The Hub wants a paid plan or more storage for it: see https://huggingface.co/settings/billing",
                HubError,
            )
        if status == 412:
            return "Somebody else has changed it meanwhile: choose another name.", HubError
        if status == 413:
            return "The Hub finds a file too large: make smaller shards.", HubError
        if status == 400 or (status is None and "README.md" in said):
            return f"The Hub does not accept it: {said}", HubError
        found = client.translated(error, self.repo_id, self.token)
        return str(found), type(found)


def _operation(name: str, file: OutgoingFile) -> CommitOperationAdd:
    """Give what adds a file; of one that was sent ahead only size and sha256 are known here."""
    if file.source is not None:
        return CommitOperationAdd(name, file.source)
    operation = CommitOperationAdd(name, b"")
    operation.upload_info = UploadInfo(file.size, b"", bytes.fromhex(file.sha256))
    operation._upload_mode, operation._should_ignore, operation._is_uploaded = "lfs", False, True
    return operation


def _status(error: Exception) -> int | None:
    found = client.cause(error)
    return found.response.status_code if isinstance(found, HfHubHTTPError) else None


def _unsure(error: Exception) -> bool:
    """Whether what was asked may have been done: no reply, a server's fault, or a reply that is none."""
    found, status = client.cause(error), _status(error)
    if status is not None:
        return status == 429 or status >= 500
    return isinstance(found, httpx2.TransportError | json.JSONDecodeError)


def _git_blob(data: bytes) -> str:
    """Give git's name for a file: sha1 over a header and the content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
