"""Repo: one repo on the Hub that one artifact goes to: claimed, written in one commit, read back.

A commit whose reply was lost is never sent blindly again: what the Hub holds decides. Files can be sent ahead of it, as
huggingface_hub's `preupload_lfs_files` does, and need not lie here any more when it is made.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.hf_api import RepoFile
from pydantic import Field

from backend import __version__
from backend.errors import AppError, HubError
from backend.hub import client
from backend.hub.patience import Patience, patiently, status
from backend.hub.transport import FAULTS, Unreachable, endpoint
from backend.hub.xet import send_ahead
from backend.options import Frozen
from backend.progress import Report
from backend.publish import visibility
from backend.publish.destination import can_take, is_empty, taken
from backend.publish.options import PublishOptions
from backend.publish.readback import Files, differences, extra
from backend.publish.refusals import refusal, unsure
from backend.publish.upload import upload

T = TypeVar("T")


class Published(Frozen):
    """Where an artifact went."""

    location: str = Field(description="The repo's address, or the folder.")
    commit: str | None = Field(None, description="The commit on the Hub.")
    files: tuple[str, ...]
    verified: bool = Field(description="Whether size and sha256 of every file were compared with what was to be sent.")


class Repo:
    """A repo that one artifact goes to.

    Args:
        options: Of the publication; the repo is named there.
        token: Of whom publishes.
        patience: How long a Hub that is overloaded or away is waited for.
    """

    def __init__(self, options: PublishOptions, token: str, patience: Patience) -> None:
        assert options.repo_id
        self.repo_id = options.repo_id
        self.options = options
        self.token = token
        self.api = client.api(token)
        self.url = f"{endpoint()}/{self.repo_id}"
        self._patience = patience
        self._private = True
        self._empty = True

    def claim(self, files: Files | None = None) -> str:
        """Make the repo, private, or take one that is there; give its head commit.

        One that is there must be empty, or an update of it must have been asked for.

        Args:
            files: What goes there, if that is known yet: a repo that holds exactly this is taken too.

        Raises:
            AppError: The name is taken, or the Hub refuses.
        """
        try:
            self._write(lambda: self.api.create_repo(self.repo_id, private=True, exist_ok=False))
        except FAULTS as e:
            exists = status(e) == 409
            if not (exists or unsure(e)):
                raise self._refused(e) from e
            try:
                return self._take(files)
            except HubError as unseen:
                if not exists:
                    raise self._refused(e) from e
                raise type(unseen)(
                    f"Could not publish to '{self.repo_id}'. It exists already, and could not be looked at. {unseen}"
                ) from e
        return client.resolve(self.repo_id, None, self.token, self._patience)

    def send_ahead(self, name: str, path: Path) -> None:
        """Send a large file ahead of the commit that names it; what is there already is not sent again.

        Raises:
            AppError: The Hub refuses, cannot be reached, or would have the file in the commit itself.
        """
        operation = CommitOperationAdd(name, path)
        try:
            self._send_ahead([operation])
        except FAULTS as e:
            raise self._refused(e, made=True) from e
        if not operation._is_uploaded:
            raise HubError(f"Could not publish to '{self.repo_id}'. The Hub does not take '{name}' as a large file.")

    def finish(self, files: Files, parent: str, report: Report) -> Published:
        """Send what was not sent ahead, make the one commit, compare what the Hub then holds, and open it as asked.

        Args:
            files: Everything that the repo is to hold, by name.
            parent: The commit that claim() gave.
            report: Receives the bytes sent.

        Raises:
            AppError: The Hub refuses, cannot be reached, or holds something else than was sent.
        """
        there = self._at(parent)
        if not differences(files, there):
            report.log(f"{self.url} holds exactly this already.")
            commit = parent
        else:
            commit = self._put(files, there, parent, report)
        self._open(report)
        return Published(location=self.url, commit=commit, files=tuple(files), verified=True)

    def _take(self, files: Files | None) -> str:
        """Return the head of a repo that is there, if it is ours to write to."""
        info = client.model_info(self.repo_id, None, self.token, self._patience)
        head = client.commit_of(info, self.repo_id)
        self._private, self._empty = bool(info.private), is_empty(info)
        if self.options.update:
            self._close()
            return head
        seen_as_asked = self._private or not self.options.private
        published_before = files is not None and seen_as_asked and not differences(files, self._at(head))
        if not (published_before or can_take(info, self.options)):
            raise taken(self.repo_id, head)
        return head

    def _put(self, files: Files, there: list[RepoFile], parent: str, report: Report) -> str:
        """Send the files and make the commit; give it once what it holds has been compared."""
        obsolete = extra(files, there)
        if obsolete:
            report.log(f"The update deletes what it does not hold any more: {', '.join(obsolete)}.")
        try:
            operations = [
                *upload(files, self._send_ahead, report),
                *(CommitOperationDelete(name, False) for name in obsolete),
            ]
            commit = self._commit(operations, files, parent)
        except FAULTS as e:
            raise self._refused(e, made=True) from e
        report.log("Reading back what the Hub holds.")
        try:
            wrong = differences(files, self._at(commit))
        except HubError as e:
            raise type(e)(
                f"'{self.repo_id}' was written, as commit {commit[:8]}, but could not be read back and compared. {e}"
                " Publish again then: nothing is sent twice."
            ) from e
        if wrong:
            remedy = f"Delete the repo at {self.url}/settings and publish again."
            if not self._empty:
                remedy = f"Do not use it. What it held before is commit {parent[:8]} at {self.url}/commits/main"
            raise HubError(
                f"Could not publish to '{self.repo_id}'. The Hub holds something else than was sent:"
                f" {', '.join(wrong)}. {remedy}"
            )
        return commit

    def _send_ahead(self, additions: Sequence[CommitOperationAdd]) -> None:
        self._write(lambda: send_ahead(self.api, self.repo_id, additions, self.token))

    def _commit(self, operations: list[Any], files: Files, parent: str) -> str:
        """Send the one commit; when nobody knows whether it arrived, look, and send it once more only if it did not."""

        def send() -> str:
            message = f"Publish with Weightsmith {__version__}"
            try:
                made = self.api.create_commit(self.repo_id, operations, commit_message=message, parent_commit=parent)
            except FAULTS as e:
                if not (unsure(e) or status(e) in (409, 412)):
                    raise
                head = self._head()
                if head == parent:
                    raise (Unreachable(str(e)) if isinstance(e, ValueError) else e) from e
                if differences(files, self._at(head)):
                    raise self._moved(parent, head) from e
                return head
            return made.oid

        return self._write(send)

    def _open(self, report: Report) -> None:
        """Set who sees the repo and where it is listed, now that it holds what it is to hold."""
        for what, step in visibility.steps(self.options, self.api, self._private).items():
            try:
                self._write(step)
            except FAULTS as e:
                why, kind = refusal(e, self.repo_id, self.token)
                raise kind(
                    f"The weights are published at {self.url}, but {what} could not be set. {why} Publish again to do"
                    f" only that, or set it at {self.url}/settings"
                ) from e
            report.log(f"Set {what}.")

    def _close(self) -> None:
        """Make a public repo private before its update, if it is to be private."""
        if self.options.private and not self._private:
            try:
                self._write(lambda: self.api.update_repo_settings(self.repo_id, private=True))
            except FAULTS as e:
                raise self._refused(e) from e
            self._private = True

    def _write(self, request: Callable[[], T]) -> T:
        return patiently(request, self._patience)

    def _at(self, commit: str) -> list[RepoFile]:
        return client.list_files(self.repo_id, commit, self.token, patience=self._patience)

    def _head(self) -> str:
        try:
            return client.resolve(self.repo_id, None, self.token, self._patience)
        except HubError as e:
            raise type(e)(
                f"Nobody can tell whether '{self.repo_id}' was published. {e} Publish again then: what has arrived is"
                " not sent twice."
            ) from e

    def _moved(self, parent: str, head: str) -> HubError:
        return HubError(
            f"Could not publish to '{self.repo_id}'. Somebody else has changed it meanwhile: it was at commit"
            f" {parent[:8]} and is at {head[:8]} now. Look at {self.url}/commits/main, then publish again as an update,"
            " or choose another name."
        )

    def _refused(self, error: Exception, made: bool = False) -> AppError:
        """Put a refused write into words.

        Args:
            error: What huggingface_hub raised.
            made: Whether the repo has been made, and stays.
        """
        why, kind = refusal(error, self.repo_id, self.token)
        if status(error) == 404:
            made = False  # any more
        if made and self._empty:
            private = "private " if self._private else ""
            why += f" The empty {private}repo {self.url} remains; publishing to it again uses it."
        elif made:
            why += f" {self.url} is as it was."
        return kind(f"Could not publish to '{self.repo_id}'. {why}")
