"""The job table: one SQLite file with one writer, the app.

What cannot be written because the disk is full is kept in memory and written when there is room; a row that cannot be
read hides no other. SQLite before 3.51.3 can corrupt a database in WAL mode with several writers, so: one connection,
rollback journal, synchronous=FULL.
"""

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field

from backend.errors import JobError
from backend.jobs.job import NO_JOB, kind, parse_spec
from backend.options import Frozen
from backend.spec import Spec
from backend.stages import STEPS


class JobState(StrEnum):
    """Where a job stands; a job in one of the last four goes on only when somebody retries it."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    ERROR = "error"
    CANCELED = "canceled"
    WAITING_FOR_LOGIN = "waiting_for_login"
    INTERRUPTED = "interrupted"


UNFINISHED = (JobState.QUEUED, JobState.RUNNING)


UNREADABLE = "unreadable"
"""The kind of a job whose row is damaged, or of another version: it can be seen and deleted, and nothing else."""


class Job(Frozen):
    """One row."""

    id: str = Field(description="128 random bits, hex.")
    owner: str
    kind: str = Field(description="A key of job.KINDS, or UNREADABLE.")
    spec: dict[str, Any] = Field(description="The spec as JSON.")
    state: JobState
    steps: tuple[str, ...] = Field(description="Names of its steps: fetch, quantize, evaluate, publish.")
    step: int = Field(0, ge=0, description="Index of the step that runs or would run next.")
    attempt: int = Field(0, description="How often it was resumed by itself.")
    created: float = Field(ge=0, le=1e11, description="Seconds since 1970, as the other two.")
    started: float | None = None
    finished: float | None = None
    error: str | None = None
    progress: dict[str, Any] | None = Field(None, description="The last progress event of the running step.")

    @property
    def trains(self) -> bool:
        """Whether it is at its training."""
        return self.state == JobState.RUNNING and STEPS[self.steps[self.step]].stoppable

    def read_spec(self) -> Spec:
        """Give the spec as a model.

        Raises:
            JobError: The row cannot be read.
        """
        return parse_spec(self.kind, self.spec)


def new_id() -> str:
    """Make an id that nobody can guess."""
    return secrets.token_hex(16)


_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, kind TEXT NOT NULL, spec TEXT NOT NULL, state TEXT NOT NULL,
    steps TEXT NOT NULL, step INTEGER NOT NULL DEFAULT 0, attempt INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL, started REAL, finished REAL, error TEXT
) STRICT
"""

_COLUMNS = ", ".join(name for name in Job.model_fields if name != "progress")


class Store:
    """The table; every method is one transaction and may be called from any thread.

    What changes a job that is there never fails: until it can be written it holds in memory.

    Raises:
        JobError: The file is no database.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        self._db.text_factory = lambda text: text.decode(errors="replace")
        self._late: dict[str, dict[str, Any] | None] = {}  # by job, what could not be written; None: it is deleted
        try:
            for statement in ("PRAGMA journal_mode=DELETE", "PRAGMA synchronous=FULL", _SCHEMA):
                self._db.execute(statement)
            if self._db.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok":
                self._db.execute("REINDEX")  # a damaged index finds no row, or stops whoever asks for one
            self.in_state(*JobState)
        except (sqlite3.DatabaseError, ValueError) as e:  # a damaged name of a column, or a row without an id
            raise JobError(f"The job table '{path.name}' cannot be read ({e}): move it away to begin a new one.") from e

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._catch_up()
            self._db.close()

    def add(self, spec: Spec, owner: str, job_id: str | None = None) -> str:
        """Add a queued job and give its id; see new_id().

        Raises:
            JobError: It could not be written.
        """
        job_id = job_id or new_id()
        row = (job_id, owner, kind(spec), spec.model_dump_json(exclude_none=True), JobState.QUEUED,
               json.dumps(spec.steps), time.time())  # fmt: skip
        try:
            with self._lock:
                self._write(
                    "INSERT INTO jobs (id, owner, kind, spec, state, steps, created) VALUES (?, ?, ?, ?, ?, ?, ?)", row
                )
        except sqlite3.Error as e:
            raise JobError(f"The job could not be noted ({e}): free some disk, for example by deleting jobs.") from e
        return job_id

    def has(self, job_id: str) -> bool:
        """Whether there is such a job, whoever's it is."""
        return bool(self._read("WHERE id = ?", job_id))

    def ids(self) -> set[str]:
        """Return the ids of all jobs, also of those whose rows cannot be read."""
        return {row["id"] for row in self._read("")}

    def get(self, job_id: str, owner: str | None = None) -> Job:
        """Give a job; with an owner, only if it is theirs.

        Raises:
            JobError: There is none; whether somebody else's exists is not told.
        """
        for row in self._read("WHERE id = ?", job_id):
            if owner is None or row["owner"] == owner:
                return _job(row)
        raise JobError("There is no such job: choose one of the list.")

    def of(self, owner: str) -> list[Job]:
        """Give an owner's jobs, the newest first."""
        return [_job(row) for row in self._read("WHERE owner = ? ORDER BY created DESC", owner)]

    def of_kind(self, kind: str, owner: str | None = None) -> list[Job]:
        """Give all jobs of a kind, or those of one owner."""
        return [_job(row) for row in self._read("WHERE kind = ?", kind) if owner in (None, row["owner"])]

    def in_state(self, *states: JobState) -> list[Job]:
        """Give all jobs in these states, the oldest first."""
        return [job for row in self._read("ORDER BY created") if (job := _job(row)).state in states]

    def claim(self, kinds: Sequence[str]) -> Job | None:
        """Take the next queued job of these kinds, fair by owner: whoever had the fewest jobs started comes first.

        None where there is none, or where the disk is too full to note that it runs.
        """
        chosen = f"""
            SELECT id FROM jobs AS j WHERE state = 'queued' AND kind IN ({", ".join("?" * len(kinds))}) ORDER BY
            (SELECT count(*) FROM jobs AS o WHERE o.owner = j.owner AND o.started > j.created), created LIMIT 1
        """
        taken = "UPDATE jobs SET state = 'running', started = coalesce(started, ?) WHERE id ="
        with self._lock:
            self._catch_up()
            if self._late:
                return None
            try:
                row = self._db.execute(f"{taken} ({chosen}) RETURNING {_COLUMNS}", (time.time(), *kinds)).fetchone()
            except sqlite3.Error:
                return None
        return _job(dict(row)) if row else None

    def delete(self, job_id: str) -> None:
        """Forget a job."""
        with self._lock:
            self._late[job_id] = None
            self._catch_up()

    def update(self, job_id: str, **columns: Any) -> None:
        """Set columns of a job."""
        with self._lock:
            before = self._late.get(job_id, {})
            if before is not None:
                self._late[job_id] = before | columns
            self._catch_up()

    def finish(self, job_id: str, state: JobState, error: str | None = None) -> None:
        """Set the state that a job ended in."""
        self.update(job_id, state=state, error=error, finished=time.time())

    def requeue(self, job_id: str, attempt: int = 0) -> None:
        """Put a job back into the queue; sealed steps stay done."""
        self.update(job_id, state=JobState.QUEUED, error=None, finished=None, attempt=attempt)

    def catch_up(self) -> None:
        """Write what could not be written before, if there is room now."""
        with self._lock:
            self._catch_up()

    def _catch_up(self) -> None:
        with suppress(sqlite3.Error):
            for job_id, columns in [*self._late.items()]:
                if columns is None:
                    self._write("DELETE FROM jobs WHERE id = ?", (job_id,))
                else:
                    names = ", ".join(f"{name} = ?" for name in columns)
                    self._write(f"UPDATE jobs SET {names} WHERE id = ?", (*columns.values(), job_id))
                del self._late[job_id]

    def _write(self, sql: str, values: tuple[Any, ...]) -> None:
        self._db.execute(sql, values)

    def _read(self, which: str, *values: str) -> list[dict[str, Any]]:
        """Return rows as they are meant to be: with what could not be written yet."""
        with self._lock:
            rows = [dict(row) for row in self._db.execute(f"SELECT {_COLUMNS} FROM jobs {which}", values)]
            changes = [self._late.get(row["id"], {}) for row in rows]
        return [row | change for row, change in zip(rows, changes, strict=True) if change is not None]


def _job(row: dict[str, Any]) -> Job:
    """Read a row; one that cannot be read is a job that says so."""
    try:
        job = Job(**row | {"spec": _spec(row["kind"], row["spec"]), "steps": tuple(json.loads(row["steps"]))})
        if job.step < len(job.steps):
            return job
    except (JobError, TypeError, ValueError, RecursionError):
        pass
    created = row["created"] or 0.0  # SQLite reads a damaged number as none
    found = {"id": row["id"], "owner": row["owner"], "created": min(max(created, 0.0), time.time())}
    return Job(**found, kind=UNREADABLE, spec={}, state=JobState.ERROR, steps=(), error=NO_JOB)


@lru_cache(1000)
def _spec(kind: str, text: str) -> dict[str, Any]:
    """Return the JSON of a spec that can be read; pages look at the same rows every second."""
    spec: dict[str, Any] = json.loads(text)
    parse_spec(kind, spec)
    return spec
