"""Streaming: a model goes from one repo to another shard by shard, and never lies here whole.

Two processes share the step. This one has the network and the token: it fetches and sends. The other, which it starts,
has neither: it computes. relay.py says how they hand shards to each other.
"""

import json
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from backend.artifacts.artifact import Artifact, now
from backend.artifacts.sealing import seal, write_manifest
from backend.disk import JOURNAL, PARTIAL, read_whole, write_whole
from backend.errors import AppError, JobError
from backend.hub.patience import long_patience
from backend.merge.merging import merge, merged
from backend.merge.on_hub import fetch_adapters
from backend.merge.options import MergeOptions
from backend.model_folder import read_config
from backend.models.config import embedded
from backend.models.fetch import downloaded
from backend.models.rewriting import StreamOptions
from backend.processes.child import Child, Hearing, Silent, environment
from backend.progress import Report
from backend.publish.destination import check_token
from backend.publish.files import outgoing
from backend.publish.repo import Published, Repo
from backend.quantize import METHODS
from backend.recipes import Recipe
from backend.settings import load_settings
from backend.stages.companions import base_in, complete
from backend.stages.making import dense_weights
from backend.stages.step import Step
from backend.stages.stream.handover import ON_DISK, Arrivals, Departures, Relay
from backend.stages.stream.transfer import Bar, Fetcher, Sender, admit_base
from backend.stages.work import PUBLISHED, Work
from backend.weights.checkpoint import Checkpoint
from backend.weights.decoded import dense

GRACE = 0.5  # seconds that it may take to end by itself


def run(work: Work, token: str | None, report: Report) -> None:
    """Be the process with the network, or the one that computes."""
    if work.online:
        transfer(work, token, report)
    else:
        compute(work, report)


def transfer(work: Work, token: str | None, report: Report) -> None:
    """Fetch, have computed and send every shard, then publish all in one commit; goes on where a killed run was.

    Raises:
        AppError: Why it ended early; what is on the Hub already is neither made nor sent again.
        SystemExit: The computing process was killed; with its exit code.
    """
    target = work.target
    relay = Relay(target.with_name(target.name + PARTIAL))
    record = relay.folder / PUBLISHED
    if not read_whole(record, list[dict[str, Any]]):
        published = _stream(work.job, work.recipe, relay, token, report)
        write_whole(record, json.dumps([published.model_dump(mode="json")]))
    for path in relay.folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (PUBLISHED, JOURNAL):  # by the journal the folder is known as one to go on from
            path.unlink()
    seal(relay.folder, target, Artifact(kind="published", stage="stream", created=now()))


def compute(work: Work, report: Report) -> None:
    """Do the arithmetic on shards as they come, and what else needs no network; the manifest is written last."""
    target, recipe = work.target, work.recipe
    relay = Relay(target.with_name(target.name + PARTIAL))
    merging = recipe.merging
    options: Any = recipe.stages[-1]
    assert recipe.revision
    arrivals, output = Arrivals(relay, recipe.base_model, recipe.revision), Departures(relay)
    started = time.monotonic()
    with ExitStack() as stack:
        weights = dense_weights(stack.enter_context(Checkpoint(arrivals, read_config(relay.base))), report)
        if merging:
            weights = stack.enter_context(merged(weights, relay.adapters(), merging, report))
        plan = options.plan(weights.tensors, weights.config)
        if isinstance(options, MergeOptions):
            merge(weights, output, options, report)
        else:
            METHODS[options.method].quantize(weights, output, options, report)
        rows = embedded(weights.config)
    seconds = time.monotonic() - started
    size = sum(max((end for _, end in header.offsets.values()), default=0) for header in arrivals.headers.values())
    adapters = tuple(base_in(adapter) for adapter in relay.adapters())
    origin = downloaded(recipe.base_model, recipe.revision)
    base = base_in(relay.base)._replace(origin=origin, weights_bytes=size, adapters=adapters, rows=rows)
    artifact = complete(recipe, options, base, plan, relay.output, report)
    files = relay.beside() | output.files()
    artifact = artifact.model_copy(update={"files": dict(sorted(files.items())), "seconds": round(seconds, 1)})
    write_manifest(relay.output, artifact)


def _stream(job: Path, recipe: Recipe, relay: Relay, token: str | None, report: Report) -> Published:
    assert recipe.publish
    patience = long_patience(load_settings().hub_patience_seconds, report.log)
    repo_id, token = check_token(recipe.publish, token, patience)
    repo = Repo(recipe.publish, token, patience)
    if relay.result() is None:
        repo.claim()
        report.log(f"Streaming to {repo.url}: at most {ON_DISK} shards of either model lie here at a time.")
        source = admit_base(recipe, relay, token)
        if recipe.merging:
            relay.set_adapters(fetch_adapters(recipe.merging, load_settings().models, token, report))
        options, tensors = recipe.stages[-1], [t for header in source.headers.values() for t in header.tensors]
        assert isinstance(options, StreamOptions)
        seen = dense(tensors, read_config(relay.base))
        planned = options.plan(seen.tensors, seen.config)  # of a merge: with adapters of the usual kind
        bar = Bar(source, sum(planned.files.values()), report)
        try:
            _accompany(job, [Fetcher(relay, source, bar).run, Sender(relay, repo, bar).run], report)
        except _Canceled:
            relay.drop_shards()
            raise
    Sender(relay, repo, None).send()
    Departures(relay).close()
    files = outgoing(relay.output, repo_id, token, relay.finished(), recipe.publish.card, recipe.publish.variants)
    return repo.finish(files, repo.claim(files), report)


class _Canceled(SystemExit):
    """Somebody wants this process to end."""


def _end(*_: object) -> None:
    raise _Canceled(128 + signal.SIGTERM)


class _Errand(threading.Thread):
    """What goes on beside something else; how it failed is kept for who looks."""

    def __init__(self, work: Callable[[threading.Event], None], stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._work, self._halt = work, stop
        self._error: AppError | OSError | None = None
        self._ended = False
        self.start()

    def run(self) -> None:
        """Do it."""
        try:
            self._work(self._halt)
            self._ended = True
        except (AppError, OSError) as e:
            self._error = e

    def check(self) -> None:
        """Raise what it failed with; what nobody foresaw is in the log."""
        if self._error:
            raise self._error
        if not (self.is_alive() or self._ended):
            raise SystemExit(1)


def _accompany(job: Path, works: Sequence[Callable[[threading.Event], None]], report: Report) -> None:
    """Have the other process compute while this one fetches and sends; when either fails, both end."""

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "log":
            report.log(event["text"])

    def check() -> None:
        for errand in errands:
            errand.check()

    command = [sys.executable, "-m", "backend.jobs.worker", str(job), "0", "offline"]
    signal.signal(signal.SIGTERM, _end)
    heard = Hearing(tell)
    child = Child(command, environment(job, online=False), job, job / "log.txt", heard)
    stop = threading.Event()
    errands = [_Errand(work, stop) for work in works]
    try:
        code = child.attend(GRACE, check)
    except Silent as e:
        raise JobError(f"The computing process {e}: retry.") from e
    finally:
        stop.set()
    if heard.error:
        raise JobError(heard.error["text"])
    if code:
        raise SystemExit(code)
    for errand in errands:
        errand.join()
        errand.check()


STEP = Step(run, online=True)
