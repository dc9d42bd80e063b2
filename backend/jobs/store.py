"""The job table: one SQLite file with one writer, the app.

SQLite before 3.51.3 can corrupt a database in WAL mode with several writers, so: one connection, rollback journal,
synchronous=FULL.
"""

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import Field

from backend.errors import JobError
from backend.hub.names import STORED
from backend.jobs.specs import KINDS, Spec, kind, steps
from backend.options import Frozen, parse


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


class Job(Frozen):
    """One row."""

    id: str = Field(description="128 random bits, hex.")
    owner: str
    kind: str = Field(description="A key of specs.KINDS.")
    spec: dict[str, Any] = Field(description="The spec as JSON.")
    state: JobState
    steps: tuple[str, ...] = Field(description="Names of its steps: fetch, quantize, evaluate, publish.")
    step: int = Field(0, description="Index of the step that runs or would run next.")
    attempt: int = Field(0, description="How often it was resumed by itself.")
    created: float
    started: float | None = None
    finished: float | None = None
    error: str | None = None
    progress: dict[str, Any] | None = Field(None, description="The last progress event of the running step.")

    @property
    def trains(self) -> bool:
        """Whether it is at its training."""
        return self.state == JobState.RUNNING and self.steps[self.step] == "finetune"

    def read_spec(self) -> Spec:
        """Give the spec as a model."""
        spec: Spec = parse(KINDS[self.kind], self.spec, context=STORED)
        return spec


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


class Store:
    """The table; every method is one transaction and may be called from any thread.

    Raises:
        JobError: The file is no database.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        try:
            for statement in ("PRAGMA journal_mode=DELETE", "PRAGMA synchronous=FULL", _SCHEMA):
                self._db.execute(statement)
        except sqlite3.DatabaseError as e:
            raise JobError(f"The job table '{path.name}' cannot be read ({e}): move it away to begin a new one.") from e

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def add(self, spec: Spec, owner: str, job_id: str | None = None) -> str:
        """Add a queued job and give its id; see new_id()."""
        job_id = job_id or new_id()
        row = (job_id, owner, kind(spec), spec.model_dump_json(exclude_none=True), JobState.QUEUED,
               json.dumps(steps(spec)), time.time())  # fmt: skip
        self._write("INSERT INTO jobs (id, owner, kind, spec, state, steps, created) VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return job_id

    def has(self, job_id: str) -> bool:
        """Whether there is such a job, whoever's it is."""
        with self._lock:
            return self._db.execute("SELECT 1 FROM jobs WHERE id = ?", (job_id,)).fetchone() is not None

    def get(self, job_id: str, owner: str | None = None) -> Job:
        """Give a job; with an owner, only if it is theirs.

        Raises:
            JobError: There is none; whether somebody else's exists is not told.
        """
        with self._lock:
            row = self._db.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None or (owner is not None and row["owner"] != owner):
            raise JobError("There is no such job: choose one of the list.")
        return _job(row)

    def of(self, owner: str) -> list[Job]:
        """Give an owner's jobs, the newest first."""
        with self._lock:
            rows = self._db.execute("SELECT * FROM jobs WHERE owner = ? ORDER BY created DESC", (owner,)).fetchall()
        return [_job(row) for row in rows]

    def of_kind(self, kind: str, owner: str | None = None) -> list[Job]:
        """Give all jobs of a kind, or those of one owner."""
        mine = " AND owner = ?" if owner is not None else ""
        with self._lock:
            rows = self._db.execute(
                f"SELECT * FROM jobs WHERE kind = ?{mine}", (kind, *([owner] if owner is not None else []))
            ).fetchall()
        return [_job(row) for row in rows]

    def in_state(self, *states: JobState) -> list[Job]:
        """Give all jobs in these states, the oldest first."""
        marks = ", ".join("?" * len(states))
        with self._lock:
            rows = self._db.execute(f"SELECT * FROM jobs WHERE state IN ({marks}) ORDER BY created", states).fetchall()
        return [_job(row) for row in rows]

    def claim(self, kinds: Sequence[str]) -> Job | None:
        """Take the next queued job of these kinds, fair by owner: whoever had the fewest jobs started comes first."""
        chosen = f"""
            SELECT id FROM jobs AS j WHERE state = 'queued' AND kind IN ({", ".join("?" * len(kinds))}) ORDER BY
            (SELECT count(*) FROM jobs AS o WHERE o.owner = j.owner AND o.started > j.created), created LIMIT 1
        """
        with self._lock:
            row = self._db.execute(
                f"UPDATE jobs SET state = 'running', started = coalesce(started, ?) WHERE id = ({chosen}) RETURNING *",
                (time.time(), *kinds),
            ).fetchone()
        return _job(row) if row else None

    def delete(self, job_id: str) -> None:
        """Forget a job."""
        self._write("DELETE FROM jobs WHERE id = ?", (job_id,))

    def update(self, job_id: str, **columns: Any) -> None:
        """Set columns of a job."""
        names = ", ".join(f"{name} = ?" for name in columns)
        self._write(f"UPDATE jobs SET {names} WHERE id = ?", (*columns.values(), job_id))

    def finish(self, job_id: str, state: JobState, error: str | None = None) -> None:
        """Set the state that a job ended in."""
        self.update(job_id, state=state, error=error, finished=time.time())

    def requeue(self, job_id: str, attempt: int = 0) -> None:
        """Put a job back into the queue; sealed steps stay done."""
        self.update(job_id, state=JobState.QUEUED, error=None, finished=None, attempt=attempt)

    def _write(self, sql: str, values: tuple[Any, ...]) -> None:
        with self._lock:
            self._db.execute(sql, values)


def _job(row: sqlite3.Row) -> Job:
    data = dict(row)
    return Job(**data | {"spec": json.loads(data["spec"]), "steps": tuple(json.loads(data["steps"]))})
