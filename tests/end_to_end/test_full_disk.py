"""A full disk: whatever it refuses, nothing half is left, every job ends in words, and with room all of it goes on."""

import json
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from backend.artifacts.artifact import Artifact, now
from backend.artifacts.sealing import is_sealed, partial, seal
from backend.disk import write_whole
from backend.errors import JobError
from backend.jobs.store import UNREADABLE, JobState, Store
from backend.jobs.supervisor import Supervisor
from backend.processes.child import ROOT
from backend.recipes import parse_recipe
from backend.settings import Settings
from tests.support.earlier import earlier

RECIPE = parse_recipe({"base_model": "demo", "stages": [{"stage": "quantize", "method": "nf4"}]})


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """Refuse whatever would make a file longer than so many bytes, as a full disk refuses it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


ROOM = range(0, 24_576, 1024)


def test_what_a_full_disk_refuses_to_note_of_a_job_is_noted_when_there_is_room(tmp_path: Path) -> None:
    refused = 0
    for size in ROOM:
        store = Store(tmp_path / f"{size}.sqlite")
        ends, runs, goes = (store.add(RECIPE, "me") for _ in range(3))
        assert store.claim(["recipe"]) is not None
        with full_after(size):
            store.finish(ends, JobState.ERROR, "The merge failed.")
            store.update(runs, step=1)
            store.delete(goes)
            try:
                store.add(RECIPE, "me")
            except JobError:
                refused += 1
            claimed = store.claim(["recipe"])
            meant = {job.id: (job.state, job.error, job.step) for job in store.of("me") if job.id in (ends, runs, goes)}
        assert meant[ends] == (JobState.ERROR, "The merge failed.", 0)
        assert meant[runs][2] == 1
        assert goes not in meant
        assert not store.has(goes)
        assert claimed is None or claimed.id not in (ends, goes)
        store.catch_up()
        store.close()
        again = Store(tmp_path / f"{size}.sqlite")
        assert again.get(ends).error == "The merge failed."
        assert again.get(runs).step == 1
        assert not again.has(goes)
        again.close()
    assert 0 < refused < len(ROOM)


def test_a_table_of_an_earlier_version_is_rewritten_or_refused_in_words_wherever_the_disk_ends(tmp_path: Path) -> None:
    refused = []
    for size in ROOM:
        table = earlier(tmp_path / str(size)) / "jobs.sqlite"
        with full_after(size):
            try:
                Store(table).close()
            except JobError as e:
                refused.append(str(e))
        store = Store(table)
        assert len(store.of("anna")) == 8
        assert not [job for job in store.of("anna") if job.kind == UNREADABLE]
        store.close()
    assert 0 < len(refused) < len(ROOM)
    assert all("Nothing in it is lost" in text for text in refused)


def test_a_file_is_the_old_one_or_the_new_one_wherever_the_disk_ends(tmp_path: Path) -> None:
    path = tmp_path / "speeds.json"
    write_whole(path, "old")
    kept = set()
    for size in range(9):
        with full_after(size):
            try:
                write_whole(path, "the new")
            except OSError:
                kept.add(path.read_text())
        assert [each.name for each in tmp_path.iterdir()] == ["speeds.json"]
    assert (kept, path.read_text()) == ({"old"}, "the new")


def test_an_artifact_is_sealed_or_not_wherever_the_disk_ends(tmp_path: Path) -> None:
    target, sealed = tmp_path / "1-quantize", 0
    for size in (*range(0, 18_000, 2000), 18_001):
        draft = partial(target)
        (draft / "model.safetensors").write_bytes(b"weights")
        with full_after(size):
            try:
                seal(draft, target, Artifact(kind="quantized", stage="quantize", created=now()))
            except OSError:
                assert not target.exists()
            else:
                sealed += 1
                assert is_sealed(target)
                shutil.rmtree(target)
    assert sealed > 0


FULL = """
import json, os, shutil, sys, time
from pathlib import Path
from typing import Any
from backend.errors import JobError
from backend.jobs.store import UNFINISHED
from backend.jobs.supervisor import Supervisor
from backend.recipes import parse_recipe
from backend.settings import Settings
from tests.support.earlier import earlier
data, ballast = Path(sys.argv[1]), Path(sys.argv[1]) / "ballast"
supervisor = Supervisor(Settings(data=data, cancel_seconds=1))
supervisor.start()
def until(job_id, condition):
    for waited in range(1200):
        job = supervisor.get(job_id, "me")
        if condition(job.state):
            return job
        time.sleep(0.05)
    return job
def ended(state):
    return state not in UNFINISHED
for free in map(int, sys.argv[3:]):
    job_id = supervisor.submit(parse_recipe(json.loads(sys.argv[2])), "me", None)
    until(job_id, lambda state: state != "queued")  # one that is not taken yet waits for room, which ends nothing
    with ballast.open("wb", buffering=0) as file:
        try:
            for size in (1 << 16, 512):
                while shutil.disk_usage(data).free - size >= free:
                    file.write(bytes(size))
        except OSError:
            pass
    job = until(job_id, ended)
    ballast.unlink()
    print(json.dumps([free, job.state, job.error]), flush=True)
    if job.state == "error":
        supervisor.retry(job_id, "me", None)
    job = until(job_id, ended)
    print(json.dumps(["again", job.state, job.error, len(supervisor.artifacts(job_id, "me"))]), flush=True)
    supervisor.delete(job_id, "me")
    shutil.rmtree(data / "models", ignore_errors=True)
supervisor.stop()
"""


@pytest.mark.real
def test_on_a_disk_that_is_full_a_job_ends_in_words_and_goes_on_when_there_is_room(hub, tiny_model, tmp_path):
    if subprocess.run(["unshare", "-Urm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a disk of their own")
    commit = hub.add_model("me/tiny", tiny_model)
    recipe = {"base_model": "me/tiny", "revision": commit, "stages": [{"stage": "quantize", "method": "nf4"}]}
    disk = tmp_path / "disk"
    disk.mkdir()
    room = ["0", "4096", "65536", "900000", "1200000", "20000000"]
    inside = f'mount -t tmpfs -o size=40m none "{disk}" && exec "$@"'
    command = [sys.executable, "-c", FULL, str(disk), json.dumps(recipe), *room]
    done = subprocess.run(["unshare", "-Urm", "sh", "-c", inside, "sh", *command], check=False, cwd=ROOT, text=True,
                          capture_output=True, timeout=300)  # fmt: skip
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(said) == 2 * len(room), done.stderr
    ends, again = said[::2], said[1::2]
    assert {end[1] for end in ends} <= {"completed", "error"}
    assert [end[1] for end in ends].count("error") >= 3
    assert all(len(end[2].splitlines()) == 1 and "free" in end[2] for end in ends if end[1] == "error")
    assert [each[1:] for each in again] == [["completed", None, 1]] * len(room)


class Refusing(Store):
    """A table on a disk that can be full; what SQLite says then was seen on a disk that was."""

    full: str | None = None

    def _refuse(self, name: str) -> None:
        if self.full in (name, "everything"):
            raise sqlite3.OperationalError("database or disk is full")


def _guarded(name: str) -> Any:
    def call(self: Refusing, *given: Any, **more: Any) -> Any:
        self._refuse(name)
        return getattr(Store, name)(self, *given, **more)

    return call


SITES = ("claim", "_write", "update", "finish", "has", "get", "_read")
for site in SITES:
    setattr(Refusing, site, _guarded(site))


@pytest.mark.parametrize("site", [*SITES, "everything"])
def test_no_job_stays_running_with_nobody_at_it_whatever_the_disk_refuses(site: str, tmp_path: Path) -> None:
    supervisor = Supervisor(Settings(data=tmp_path, cancel_seconds=0.1))
    supervisor._lanes = []  # the test takes the jobs itself
    supervisor.start()
    supervisor._store.close()
    store = supervisor._store = Refusing(tmp_path / "jobs.sqlite")
    first, second = (supervisor.submit(RECIPE, "me", None) for _ in range(2))
    job = supervisor._next(("recipe",))
    assert job
    supervisor.cancel(job.id, "me")  # so that it ends at once
    store.full = site
    with suppress(sqlite3.Error):
        supervisor._run(job)
    taken = [supervisor._next(("recipe",))]
    store.full = None
    taken += [supervisor._next(("recipe",)) for _ in range(2)]
    assert store.get(first).state in (JobState.CANCELED, JobState.ERROR)
    assert [each.id for each in taken if each] == [second]
    supervisor.stop()
