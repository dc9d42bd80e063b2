"""Push: an artifact goes to a folder, or to a repo on the Hub in one commit that is read back.

A commit whose reply was lost is never sent blindly again: what the Hub holds decides. Push as in huggingface_hub's
`create_commit`, which is atomic and, unlike `upload_folder`, one commit.
"""

import hashlib
import json
import shutil
import tempfile
import time
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HfHubHTTPError
from pydantic import Field

from backend import __version__
from backend.errors import AppError, HardwareError, HubError, LoginError, SpecError
from backend.hub import client
from backend.models.artifacts import PARTIAL, sha256, verify
from backend.options import Frozen
from backend.progress import Report
from backend.publish import PublishOptions
from backend.publish.destination import HUBS_OWN, TOKENS_PAGE, check_folder, check_token, is_empty, taken
from backend.publish.outgoing import OutgoingFile, outgoing

PAUSE = 1.0  # seconds before a commit is sent again
SMALL = 1_000_000  # bytes; smaller files go up together

_FAULTS = (httpx2.HTTPError, OSError, ValueError, RuntimeError)  # of huggingface_hub and hf_xet, each in its own dress


class Published(Frozen):
    """Where an artifact went."""

    location: str = Field(description="The repo's address, or the folder.")
    commit: str | None = Field(None, description="The commit on the Hub.")
    files: tuple[str, ...]
    verified: bool = Field(description="Whether size and sha256 of every file were compared with what was to be sent.")


def publish(folder: Path, options: PublishOptions, token: str | None, report: Report) -> Published:
    """Publish an artifact: weights, card, recipe and manifest.

    Args:
        folder: A sealed artifact.
        options: Where it goes.
        token: Of whom publishes; a local folder needs none.
        report: Told the bytes sent.

    Raises:
        SpecError: The artifact has changed or must not leave, or the destination is taken.
        LoginError: The Hub wants a token, or a better one.
        HubError: The Hub refused, could not be reached, or holds something else than was sent.
        HardwareError: The folder cannot be written.
    """
    if options.to_folder is not None:
        check_folder(options.to_folder)
        if options.to_folder.resolve().is_relative_to(folder.resolve()):
            raise SpecError(
                f"Could not publish to '{options.to_folder}'. It lies within what is published: choose another folder."
            )
        return _to_folder(_checked(folder, None, None, report), options.to_folder, report)
    repo_id, token = check_token(options, token)
    files = _checked(folder, repo_id, token, report)
    return _Push(repo_id, options.private, token, files).run(report)


def _checked(folder: Path, repo_id: str | None, token: str | None, report: Report) -> dict[str, OutgoingFile]:
    report.log("Comparing every file with its sha256.")
    verify(folder)
    return outgoing(folder, repo_id, token)


def _to_folder(files: dict[str, OutgoingFile], target: Path, report: Report) -> Published:
    """Write a folder that holds what the Hub would have got, whole or not at all."""
    total, done = sum(file.size for file in files.values()), 0
    draft = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=PARTIAL, dir=target.parent))
        for name, file in files.items():
            if isinstance(file.source, Path):
                shutil.copyfile(file.source, draft / name)
            else:
                (draft / name).write_bytes(file.source)
            if sha256(draft / name) != file.sha256:
                raise HardwareError(f"'{name}' was not written as it is: check the disk of '{target}'.")
            done += file.size
            report.progress("publishing", done, total, "bytes")
        draft.chmod(0o755)
        draft.rename(target)
    except OSError as e:
        raise HardwareError(
            f"Could not publish to '{target}'. {e.strerror}: choose a folder that can be written, with"
            f" {total / 1e6:.0f} MB free."
        ) from e
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return Published(location=str(target), files=tuple(files), verified=True)


class _Push:
    """One artifact on its way to one repo."""

    def __init__(self, repo_id: str, private: bool, token: str, files: dict[str, OutgoingFile]) -> None:
        self.repo_id, self.private, self.token, self.files = repo_id, private, token, files
        self.api = client.api(token)
        self.url = f"{client.endpoint()}/{repo_id}"

    def run(self, report: Report) -> Published:
        parent = self._claim()
        if not self._differences(parent):
            report.log(f"{self.url} holds exactly this already.")
            return self._published(parent)
        try:
            operations = self._upload(report)
            commit = self._commit(operations, parent)
        except _FAULTS as e:
            raise self._refusal(e, made=True) from e
        report.log("Reading back what the Hub holds.")
        if wrong := self._differences(commit):
            raise HubError(
                f"Could not publish to '{self.repo_id}'. The Hub holds something else than was sent:"
                f" {', '.join(wrong)}. Delete the repo at {self.url}/settings and publish again."
            )
        return self._published(commit)

    def _claim(self) -> str:
        """Make the repo, or take one that is there, empty and as private as asked; give its head commit."""
        try:
            self.api.create_repo(self.repo_id, private=self.private, exist_ok=False)
        except _FAULTS as e:
            if not (_status(e) == 409 or _unsure(e)):
                raise self._refusal(e) from e
            parent = self._ours()
            if parent is None:
                raise (taken(self.repo_id) if _status(e) == 409 else self._refusal(e)) from e
            return parent
        return client.resolve(self.repo_id, None, self.token)

    def _ours(self) -> str | None:
        """Give the head of a repo that is empty, or holds exactly these files, and is as private as asked."""
        try:
            info = client.model_info(self.repo_id, None, self.token)
        except HubError:
            return None
        head = client.commit_of(info, self.repo_id)
        ours = is_empty(info) or not self._differences(head)
        return head if ours and bool(info.private) == self.private else None

    def _upload(self, report: Report) -> list[CommitOperationAdd]:
        """Send the large files ahead; a file that is there already is not sent again."""
        operations = [CommitOperationAdd(name, file.source) for name, file in self.files.items()]
        small = [operation for operation in operations if self.files[operation.path_in_repo].size < SMALL]
        large = [operation for operation in operations if operation not in small]
        total, done = sum(file.size for file in self.files.values()), 0
        report.progress("uploading", done, total, "bytes")
        for batch in [small, *([operation] for operation in large)]:
            self.api.preupload_lfs_files(self.repo_id, batch, free_memory=False)
            done += sum(self.files[operation.path_in_repo].size for operation in batch)
            report.progress("uploading", done, total, "bytes")
        return operations

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

    def _differences(self, commit: str) -> list[str]:
        """Name the files whose size or hash on the Hub is not what was to be sent, or that are missing or extra."""
        there = {file.path: file for file in client.list_files(self.repo_id, commit, self.token)}
        wrong = [name for name in there if name not in self.files and name not in HUBS_OWN]
        for name, file in self.files.items():
            remote = there.get(name)
            if remote is None or remote.size != file.size:
                wrong.append(name)
            elif remote.lfs:
                wrong += [name] if remote.lfs.sha256 != file.sha256 else []
            elif remote.blob_id != _git_blob(file.read()):
                wrong.append(name)
        return sorted(wrong)

    def _published(self, commit: str) -> Published:
        return Published(location=self.url, commit=commit, files=tuple(self.files), verified=True)

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
