"""Transfers: what of a streamed model comes from the Hub, and what goes there, while another process computes."""

import threading
from typing import NamedTuple

from backend.errors import SpecError
from backend.hub import client
from backend.hub.files import Entry, HubFiles, PartlyHere
from backend.hub.transfer import fetch_file
from backend.models.admission import admit
from backend.models.inspection import read_headers
from backend.progress import Report
from backend.publish.repo import Repo
from backend.recipes import Recipe
from backend.stages.stream.handover import ON_DISK, POLL, Relay
from backend.strict_json import quoted
from backend.weights.header import Header, read_header


class Source(NamedTuple):
    """The base model on the Hub."""

    files: HubFiles
    shards: tuple[Entry, ...]
    headers: dict[str, Header]


def admit_base(recipe: Recipe, relay: Relay, token: str | None) -> Source:
    """Admit the base model from its headers, and bring everything of it but the shards."""
    assert recipe.revision
    client.check_access(recipe.base_model, token)
    files = HubFiles(recipe.base_model, recipe.revision, token)
    admitted = admit(files)
    headers = read_headers(files, admitted)
    relay.open(headers)
    for entry in admitted.beside:
        fetch_file(files, entry, relay.base, lambda there: None)
    admit(PartlyHere(files, relay.base), whole=True)
    return Source(files, admitted.weights, headers)


class Bar:
    """How far fetching and sending are together, from several threads.

    Args:
        source: The base model.
        result: Bytes of what is made of it.
        report: Receives both.
    """

    def __init__(self, source: Source, result: int, report: Report) -> None:
        self._total = sum(entry.size for entry in source.shards) + result
        self._report = report
        self._lock = threading.Lock()
        self._done: dict[str, int] = {}

    def tell(self, part: str, done: int) -> None:
        """Say how many bytes of a part are done."""
        with self._lock:
            self._done[part] = done
            moved = min(sum(self._done.values()), self._total)
            self._report.progress("streaming", moved, self._total, "bytes")


class Fetcher:
    """Brings the shard that is wanted, and the one after it while there is room."""

    def __init__(self, relay: Relay, source: Source, bar: Bar) -> None:
        self._relay = relay
        self._source = source
        self._bar = bar
        self._came: set[str] = set()

    def run(self, stop: threading.Event) -> None:
        """Go on until told to stop."""
        while not stop.is_set():
            if entry := self._next():
                self._fetch(entry)
            else:
                stop.wait(POLL)

    def _next(self) -> Entry | None:
        wanted = self._relay.wanted()
        names = [entry.name for entry in self._source.shards]
        if wanted is None:
            return None
        at = names.index(wanted)
        if wanted not in self._came:
            for entry in self._source.shards[:at]:  # used up by now, perhaps in an earlier run
                (self._relay.arriving / entry.name).unlink(missing_ok=True)
                self._bar.tell(f"in {entry.name}", entry.size)
            return self._source.shards[at]
        ahead = (entry for entry in self._source.shards[at:] if entry.name not in self._came)
        return next(ahead, None) if self._relay.waiting() < ON_DISK else None

    def _fetch(self, entry: Entry) -> None:
        path = self._relay.arriving / entry.name
        fetch_file(self._source.files, entry, self._relay.arriving, lambda n: self._bar.tell(f"in {entry.name}", n))
        if read_header(path) != self._source.headers[entry.name]:
            raise SpecError(f"{quoted(entry.name)} has another header than the Hub had shown: choose another model.")
        self._came.add(entry.name)
        path.replace(self._relay.incoming / entry.name)


class Sender:
    """Sends finished shards ahead of the commit, and deletes them here."""

    def __init__(self, relay: Relay, repo: Repo, bar: Bar | None) -> None:
        self._relay = relay
        self._repo = repo
        self._bar = bar

    def run(self, stop: threading.Event) -> None:
        """Go on until told to stop."""
        while not stop.is_set():
            self.send()
            stop.wait(POLL)

    def send(self) -> None:
        """Send what is finished by now."""
        for name, found in self._relay.finished().items():
            path, sent = self._relay.output / name, self._relay.sent()
            if found not in sent:
                size = path.stat().st_size
                self._repo.send_ahead(name, path)
                self._relay.set_sent(found, size)
            path.unlink(missing_ok=True)
            if self._bar:
                self._bar.tell(f"out {name}", self._relay.sent()[found])
