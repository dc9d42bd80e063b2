"""The job table: one SQLite file with one writer, the app; what a job is asked to do lies in its folder, see job.py.

What cannot be written because the disk is full is kept in memory and written when there is room; a row that cannot be
read hides no other. SQLite before 3.51.3 can corrupt a database in WAL mode with several writers, so: one connection,
rollback journal, synchronous=FULL.
"""

import secrets
import shutil
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

from backend.disk import read_whole, write_whole
from backend.errors import JobError
from backend.jobs.job import NO_JOB, kind, parse_spec, spec_file, write_spec
from backend.options import Frozen
from backend.spec import Spec
from backend.stages import STEPS
from backend.stages.kinds import KINDS


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
    """One row, and what the job's folder holds of it."""

    id: str = Field(description="128 random bits, hex.")
    owner: str
    kind: str = Field(description="A key of job.KINDS, or UNREADABLE.")
    spec: dict[str, Any] = Field(description="The spec as JSON, from its folder.")
    state: JobState
    steps: tuple[str, ...] = Field(description="Names of its steps, from its spec.")
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
        """Return the spec as a model.

        Raises:
            JobError: The row cannot be read.
        """
        return parse_spec(self.kind, self.spec)


def new_id() -> str:
    """Make an id that nobody can guess."""
    return secrets.token_hex(16)


_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, kind TEXT NOT NULL, state TEXT NOT NULL,
    step INTEGER NOT NULL DEFAULT 0, attempt INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL, started REAL, finished REAL, error TEXT
) STRICT
"""

_COLUMNS = ", ".join(name for name in Job.model_fields if name not in ("spec", "steps", "progress"))

_EARLIER = ("spec", "steps")
"""Columns that the table had before these lay in the jobs' folders."""


class Store:
    """The table; every method is one transaction and may be called from any thread.

    What changes a job that is there never fails: until it can be written it holds in memory.

    Args:
        path: The file, such as `jobs.sqlite`; the jobs' folders lie in the folder of that name, `jobs`.

    Raises:
        JobError: The file is no database, or there is no room to bring an earlier version's to this one.
    """

    def __init__(self, path: Path) -> None:
        self._folders = path.with_suffix("")
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
        try:
            self._bring_up_to_date()
        except (OSError, sqlite3.Error) as e:
            raise JobError(
                f"The job table '{path.name}' of an earlier version could not be rewritten ({e}): free some space, then"
                " start again. Nothing in it is lost."
            ) from e

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
        row = (job_id, owner, kind(spec), JobState.QUEUED, time.time())
        try:
            write_spec(self._folders / job_id, spec)
            with self._lock:
                self._write("INSERT INTO jobs (id, owner, kind, state, created) VALUES (?, ?, ?, ?, ?)", row)
        except (OSError, sqlite3.Error) as e:
            shutil.rmtree(self._folders / job_id, ignore_errors=True)
            raise JobError(f"The job could not be noted ({e}): free some disk, for example by deleting jobs.") from e
        return job_id

    def has(self, job_id: str) -> bool:
        """Return whether there is such a job, whoever's it is."""
        return bool(self._read("WHERE id = ?", job_id))

    def ids(self) -> set[str]:
        """Return the ids of all jobs, also of those whose rows cannot be read."""
        return {row["id"] for row in self._read("")}

    def get(self, job_id: str, owner: str | None = None) -> Job:
        """Return a job; with an owner, only if it is theirs.

        Raises:
            JobError: There is none; whether somebody else's exists is not told.
        """
        for row in self._read("WHERE id = ?", job_id):
            if owner is None or row["owner"] == owner:
                return self._job(row)
        raise JobError("There is no such job: choose one of the list.")

    def of(self, owner: str) -> list[Job]:
        """Return an owner's jobs, the newest first."""
        return [self._job(row) for row in self._read("WHERE owner = ? ORDER BY created DESC", owner)]

    def of_kind(self, kind: str, owner: str | None = None) -> list[Job]:
        """Return all jobs of a kind, or those of one owner."""
        return [self._job(row) for row in self._read("WHERE kind = ?", kind) if owner in (None, row["owner"])]

    def in_state(self, *states: JobState) -> list[Job]:
        """Return all jobs in these states, the oldest first."""
        return [job for row in self._read("ORDER BY created") if (job := self._job(row)).state in states]

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
        return self._job(dict(row)) if row else None

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

    def _bring_up_to_date(self) -> None:
        """Put what an earlier version's table holds of the jobs' specs into their folders, and drop it there.

        A run that is killed on the way does all of it again.
        """
        columns = [row["name"] for row in self._db.execute("PRAGMA table_info(jobs)")]
        if not set(_EARLIER) <= set(columns):
            return
        for row in self._db.execute("SELECT id, kind, spec FROM jobs"):
            place = self._folders / row["id"]
            if row["kind"] in KINDS and place.parent == self._folders and not spec_file(place, row["kind"]).is_file():
                place.mkdir(parents=True, exist_ok=True)
                write_whole(spec_file(place, row["kind"]), row["spec"])
        with self._db:
            self._db.execute("BEGIN")
            for column in _EARLIER:
                self._db.execute(f"ALTER TABLE jobs DROP COLUMN {column}")

    def _job(self, row: dict[str, Any]) -> Job:
        """Read a job by its row; one that cannot be read, there or in its folder, is a job that says so."""
        try:
            spec, steps = _spec(spec_file(self._folders / row["id"], row["kind"]), row["kind"])
            job = Job(**row, spec=spec, steps=steps)
            if job.step < len(job.steps):
                return job
        except (JobError, OSError, TypeError, ValueError):
            pass
        created = row["created"] or 0.0  # SQLite reads a damaged number as none
        found = {"id": row["id"], "owner": row["owner"], "created": min(max(created, 0.0), time.time())}
        return Job(**found, kind=UNREADABLE, spec={}, state=JobState.ERROR, steps=(), error=NO_JOB)


def _spec(file: Path, kind: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the JSON of a spec, and the steps that it takes."""
    now = file.stat()
    return _parsed(file, kind, (now.st_mtime_ns, now.st_size))


@lru_cache(1000)
def _parsed(file: Path, kind: str, state: tuple[int, int]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return what _spec() does; pages look at the same jobs every second, and a spec stays as it is."""
    data = read_whole(file, dict[str, Any])
    return data or {}, parse_spec(kind, data).steps
