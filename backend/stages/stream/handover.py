"""The relay: how a process with the network and one without hand shards to each other: through a folder, nothing else.

The folder holds `base/` (the base model's small files), `arriving/` (shards that are being downloaded), `incoming/`
(shards that came whole), `output/` (the result) and these files: `headers.json`, of all shards; `adapters.json`, where
adapters lie that are merged in; `wanted`, the shard that was asked for last; `planned`, there once it is known which
finished shards still count; `progress.json`, what is on the Hub, by which the folder is known as one that a run can go
on from.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter

from backend.artifacts.artifact import MANIFEST, Artifact, File
from backend.disk import JOURNAL, read_whole, sha256, write_whole
from backend.weights.header import Header
from backend.weights.output import SHARD, Resumable, read_journal

ON_DISK = 2
"""Shards of the base model, and as many of the result, that lie here at a time."""

POLL = 0.05  # seconds between two looks at what the other process has done

_HEADERS = TypeAdapter(dict[str, Header])
_SENT = TypeAdapter(dict[str, int])
_PATHS = TypeAdapter(list[Path])


class Relay:
    """The folder, as both processes see it.

    Args:
        folder: The `.partial` folder of the step.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base, self.arriving = folder / "base", folder / "arriving"
        self.incoming, self.output = folder / "incoming", folder / "output"
        self._headers, self._sent = folder / "headers.json", folder / JOURNAL
        self._wanted, self._planned = folder / "wanted", folder / "planned"
        self._adapters = folder / "adapters.json"

    def open(self, headers: dict[str, Header]) -> None:
        """Make the folder ready for a run; what an earlier one left is checked again before it is used.

        Args:
            headers: Of the base model's shards by name, in their order.
        """
        for place in (self.base, self.arriving, self.incoming, self.output):
            place.mkdir(parents=True, exist_ok=True)
        for shard in self.incoming.iterdir():
            shard.replace(self.arriving / shard.name)
        for sign in (self._wanted, self._planned):
            sign.unlink(missing_ok=True)
        write_whole(self._headers, _HEADERS.dump_json(headers))
        write_whole(self._sent, _SENT.dump_json(self.sent()))

    def headers(self) -> dict[str, Header]:
        """Return the headers of the base model's shards by name, in their order."""
        return _HEADERS.validate_json(self._headers.read_bytes())

    def set_adapters(self, folders: Sequence[Path]) -> None:
        """Say where the adapters lie that are merged in."""
        write_whole(self._adapters, _PATHS.dump_json(list(folders)))

    def adapters(self) -> list[Path]:
        """Return where the adapters lie that are merged in."""
        return _PATHS.validate_json(self._adapters.read_bytes()) if self._adapters.is_file() else []

    def want(self, file: str) -> None:
        """Ask for a shard of the base model."""
        write_whole(self._wanted, file)

    def wanted(self) -> str | None:
        """Return the shard that was asked for last, if any was."""
        return self._wanted.read_text(encoding="utf-8") if self._wanted.is_file() else None

    def waiting(self) -> int:
        """Count the shards of the base model that came and are not used up."""
        return sum(1 for _ in self.incoming.iterdir())

    def set_planned(self) -> None:
        """Say that what the journal names as finished is part of the result."""
        write_whole(self._planned, b"")

    def sent(self) -> dict[str, int]:
        """Return what is on the Hub: sha256 to bytes; what is not known to be there is sent again."""
        return read_whole(self._sent, dict[str, int]) or {}

    def set_sent(self, sha256: str, size: int) -> None:
        """Remember that a shard is on the Hub."""
        write_whole(self._sent, _SENT.dump_json(self.sent() | {sha256: size}))

    def finished(self) -> dict[str, str]:
        """Return the shards of the result that are finished: name to sha256."""
        if result := self.result():
            return {name: file.sha256 for name, file in result.files.items() if name.endswith(SHARD)}
        journal = read_journal(self.output) if self._planned.is_file() else None
        return journal.hashes if journal else {}

    def drop_shards(self) -> None:
        """Free the disk: what is on the Hub stays finished, everything else can be fetched and made again."""
        for place in (self.arriving, self.incoming, self.output):
            for shard in place.glob("*.safetensors"):
                shard.unlink(missing_ok=True)

    def result(self) -> Artifact | None:
        """Return what the manifest says, which is written last; None before."""
        return read_whole(self.output / MANIFEST, Artifact)

    def size(self, file: str, sha256: str) -> int:
        """Return the bytes of a finished shard, wherever it is by now."""
        try:
            return (self.output / file).stat().st_size
        except FileNotFoundError:  # it is sent first and deleted then
            return self.sent()[sha256]

    def beside(self) -> dict[str, File]:
        """Describe the result's files but its shards, any of which may be sent and deleted at this moment."""
        described = {}
        for path in self.output.rglob("*"):
            name = path.relative_to(self.output).as_posix()
            if path.suffix != SHARD and name != JOURNAL and path.is_file():
                described[name] = File(size=path.stat().st_size, sha256=sha256(path))
        return described


class Arrivals:
    """The base model's shards as the process without the network gets them, see weights.checkpoint.Files."""

    def __init__(self, relay: Relay, repo_id: str, commit: str) -> None:
        self.name, self.identity = repo_id, f"{repo_id}@{commit}"
        self.headers = relay.headers()
        self._relay = relay

    def open(self, file: str) -> int:
        """Ask for a shard, wait until it is there, and give a descriptor of it."""
        self._relay.want(file)
        while True:
            try:
                return os.open(self._relay.incoming / file, os.O_RDONLY)
            except FileNotFoundError:
                time.sleep(POLL)

    def release(self, file: str) -> None:
        """Delete a shard that is used up."""
        (self._relay.incoming / file).unlink(missing_ok=True)


class Departures(Resumable):
    """The result's folder: shards that went to the Hub count as finished, and few wait here for it."""

    def __init__(self, relay: Relay) -> None:
        super().__init__(relay.output)
        self._relay = relay

    def plan(self, description: str) -> None:
        """Keep what was finished for this plan, and say that this is decided."""
        super().plan(description)
        self._relay.set_planned()

    def begin(self, file: str) -> None:
        """Wait until the Hub has taken enough of what lies here."""
        while sum(1 for _ in self.folder.glob("*.safetensors")) >= ON_DISK:
            self.settle()  # the Hub takes what is remembered
            time.sleep(POLL)

    def files(self) -> dict[str, File]:
        """Describe the finished shards."""
        return {f: File(size=self._relay.size(f, found), sha256=found) for f, found in self.hashes.items()}

    def _still_has(self, file: str, found: str) -> bool:
        return found in self._relay.sent() or super()._still_has(file, found)
