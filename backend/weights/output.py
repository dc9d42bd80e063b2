"""Where shards are written: a folder that remembers which are finished, so that a killed run goes on after them."""

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from backend.disk import JOURNAL, fsync, read_whole, sha256, write_whole
from backend.options import Frozen

SHARD = ".safetensors"


class Output:
    """A folder that weights are written to, with nothing in it before and nothing remembered after.

    Attributes:
        folder: Exists.
        finished: Bytes of the tensors of each finished shard, by its name.
        marks: Hashes of what is finished within shards, by a name that its maker gives it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.finished: dict[str, int] = {}
        self.marks: dict[str, str] = {}

    def plan(self, description: str) -> None:
        """Say what will be written, in words that differ when the bytes would.

        Args:
            description: Of the source, the options and the layout.
        """

    def has(self, file: str) -> bool:
        """Return whether a shard of this plan is finished already."""
        return file in self.finished

    def begin(self, file: str) -> None:
        """Wait until there is room for another shard."""

    def finish(self, file: str, tensor_bytes: int) -> None:
        """Take a shard of which every byte is written.

        Args:
            file: Its name.
            tensor_bytes: Of its tensors.
        """
        self.finished[file] = tensor_bytes

    def settle(self) -> None:
        """Wait until what is finished would be found after a crash."""

    def mark(self, part: str, digest: str) -> None:
        """Take a part of shards of which every byte is written.

        Args:
            part: What it is called.
            digest: sha256 of its bytes; its maker looks whether they are still the same.
        """
        self.marks[part] = digest


class Journal(Frozen):
    """What is remembered of a folder's making: the attributes of Resumable."""

    plan: str
    hashes: dict[str, str]
    finished: dict[str, int]
    marks: dict[str, str]


def read_journal(folder: Path) -> Journal | None:
    """Return what is remembered of a folder's making; None where nothing is, or the journal is torn."""
    return read_whole(folder / JOURNAL, Journal)


class Resumable(Output):
    """A folder that a run may find again: shards that another run of the same plan finished are not made twice.

    What is remembered are hashes, so that a shard which a crash of the machine has cut is made again. The journal
    stays until the folder is sealed; close() takes it away where nothing is.

    Attributes:
        hashes: sha256 of the finished shards by name, once they are settled.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.hashes: dict[str, str] = {}
        self._plan = ""
        self._beside = ThreadPoolExecutor(2, "finishing")
        self._last: Future[None] | None = None

    def plan(self, description: str) -> None:
        """Keep what was finished for this plan; remove what was for another."""
        self._plan = description
        found = read_journal(self.folder)
        if found and found.plan == description:
            known = {file: digest for file, digest in found.hashes.items() if file in found.finished}
            self.hashes = {file: digest for file, digest in known.items() if self._still_has(file, digest)}
            self.finished = {file: found.finished[file] for file in self.hashes}
            self.marks = dict(found.marks)
        for path in self.folder.iterdir():
            if path.is_dir():  # what lay beside the weights when a run failed at its end
                shutil.rmtree(path)
            elif path.name not in self.hashes and not (self.marks and path.suffix == SHARD):
                path.unlink()
        if self.hashes or self.marks:  # a run that is killed before its first shard forgets nothing
            self._remember()

    def finish(self, file: str, tensor_bytes: int) -> None:
        """Remember a shard of which every byte is written, while the next one is made."""
        self.settle()
        super().finish(file, tensor_bytes)
        self._last = self._beside.submit(self._keep, file)

    def settle(self) -> None:
        """Wait until the last shard is on the disk and remembered; its faults are raised here."""
        last, self._last = self._last, None
        if last:
            last.result()

    def mark(self, part: str, digest: str) -> None:
        """Remember a part of shards of which every byte is written."""
        self.settle()
        super().mark(part, digest)
        self._remember()

    def close(self) -> None:
        """Remove the journal: what is in the folder now is the result."""
        (self.folder / JOURNAL).unlink(missing_ok=True)

    def _keep(self, file: str) -> None:
        forced = self._beside.submit(fsync, self.folder / file)  # the disk works while the processor hashes
        self.hashes[file] = sha256(self.folder / file)
        forced.result()
        self._remember()

    def _remember(self) -> None:
        state = Journal(plan=self._plan, hashes=self.hashes, finished=self.finished, marks=self.marks)
        write_whole(self.folder / JOURNAL, state.model_dump_json())

    def _still_has(self, file: str, found: str) -> bool:
        path = self.folder / file
        return path.is_file() and sha256(path) == found
