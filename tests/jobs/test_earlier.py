"""Jobs of an earlier version, whose table held their specs: each is read as it was, and nothing of it is lost."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from backend.errors import JobError
from backend.jobs.job import read_spec
from backend.jobs.store import UNREADABLE, JobState, Store
from backend.jobs.supervisor import Supervisor
from backend.settings import Settings
from backend.stages.kinds import KINDS
from tests.support.earlier import DONE, WAITING, earlier


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return earlier(tmp_path)


@pytest.fixture
def supervisor(home: Path) -> Iterator[Supervisor]:
    """A supervisor that runs nothing."""
    supervisor = Supervisor(Settings(data=home))
    supervisor._lanes = []
    supervisor.start()
    yield supervisor
    supervisor.stop()


def columns(home: Path) -> set[str]:
    with closing(sqlite3.connect(home / "jobs.sqlite")) as db:
        return {row[1] for row in db.execute("PRAGMA table_info(jobs)")}


def test_every_job_of_an_earlier_table_is_read_as_it_was(home: Path) -> None:
    with closing(sqlite3.connect(home / "jobs.sqlite")) as db:
        before = db.execute("SELECT id, kind, state, steps, step, started, error FROM jobs ORDER BY id").fetchall()
    assert {row[1] for row in before} == set(KINDS)
    store = Store(home / "jobs.sqlite")
    for job_id, kind, state, steps, step, started, error in before:
        job = store.get(job_id, "anna")
        assert (job.kind, job.state, job.step, job.started, job.error) == (kind, state, step, started, error)
        assert "[" + ", ".join(f'"{name}"' for name in job.steps) + "]" == steps
        assert read_spec(home / "jobs" / job_id) == job.read_spec()
    store.close()
    assert not {"spec", "steps"} & columns(home)
    assert read_spec(home / "jobs" / WAITING).files() == []


def test_results_and_log_of_an_earlier_job_are_where_they_were(supervisor: Supervisor) -> None:
    assert [path.name for path in supervisor.artifacts(DONE, "anna")] == ["1-quantize"]
    assert supervisor.log(DONE, "anna") == "— fetch —\nNF4: 1 MB in 1 s."
    assert supervisor.lost(DONE, "anna") == []
    assert supervisor.get(WAITING, "anna").state == JobState.QUEUED
    supervisor.delete(DONE, "anna")


def test_an_earlier_table_that_cannot_be_rewritten_is_refused_in_words_and_stays(home: Path) -> None:
    (home / "jobs" / WAITING).write_text("a file where a folder should be")
    with pytest.raises(JobError, match=r"free some space.*Nothing in it is lost"):
        Store(home / "jobs.sqlite")
    assert {"spec", "steps"} <= columns(home)
    (home / "jobs" / WAITING).unlink()
    store = Store(home / "jobs.sqlite")
    assert len(store.of("anna")) == len(KINDS) + 2
    store.close()


def test_a_damaged_spec_of_an_earlier_table_hides_no_other(home: Path) -> None:
    with closing(sqlite3.connect(home / "jobs.sqlite", isolation_level=None)) as db:
        db.execute("UPDATE jobs SET spec = substr(spec, 1, 20) WHERE id = ?", (WAITING,))
    store = Store(home / "jobs.sqlite")
    assert [job.id for job in store.of("anna") if job.kind == UNREADABLE] == [WAITING]
    store.close()
