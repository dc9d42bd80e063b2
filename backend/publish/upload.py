"""Upload: the files of a commit, the large ones sent ahead of it, in bytes as they go."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from huggingface_hub import CommitOperationAdd
from huggingface_hub.lfs import UploadInfo

from backend.progress import Report
from backend.publish.files import OutgoingFile
from backend.publish.readback import Files

SMALL = 1_000_000  # bytes; smaller files go up together


def upload(
    files: Files, send: Callable[[Sequence[CommitOperationAdd]], None], report: Report
) -> list[CommitOperationAdd]:
    """Send the large files ahead and give what the commit is made of; a file that is there already is not sent again.

    Args:
        files: Everything that the commit adds; what was sent ahead before is not sent.
        send: Sends some of them, in one go.
        report: Receives the bytes sent.
    """
    here = {name: file.size for name, file in files.items() if file.source is not None}
    small = [name for name, size in here.items() if size < SMALL]
    total, done = sum(here.values()), 0

    def tell(position: int) -> None:
        report.progress("uploading", done + position, total, "bytes")

    operations = {name: _operation(name, file, tell) for name, file in files.items()}
    tell(0)
    for batch in [small, *([name] for name in here if name not in small)]:
        send([operations[name] for name in batch])
        done += sum(here[name] for name in batch)
        tell(0)
    return list(operations.values())


class _Addition(CommitOperationAdd):
    """A file that tells how far it has been read while it is sent by LFS; hf_xet tells nobody."""

    tell: Callable[[int], None]

    @contextmanager
    def as_file(self, with_tqdm: bool = False) -> Iterator[BinaryIO]:
        with super().as_file() as file:
            if with_tqdm:
                read = file.read

                def told(size: int = -1) -> bytes:
                    data = read(size)
                    self.tell(file.tell())
                    return data

                file.read = told  # type: ignore[method-assign]
            yield file


def _operation(name: str, file: OutgoingFile, tell: Callable[[int], None]) -> CommitOperationAdd:
    """Return what adds a file; of one that was sent ahead only size and sha256 are known here."""
    if isinstance(file.source, Path) and file.size >= SMALL:
        operation = _Addition(name, file.source)
        operation.tell = tell
        return operation
    if file.source is not None:
        return CommitOperationAdd(name, file.source)
    sent = CommitOperationAdd(name, b"")
    sent.upload_info = UploadInfo(file.size, b"", bytes.fromhex(file.sha256))
    sent._upload_mode = "lfs"
    sent._should_ignore = False
    sent._is_uploaded = True
    return sent
