"""The job table: one SQLite file with one writer, the app.

SQLite before 3.51.3 can corrupt a database in WAL mode with several writers, so: one connection, rollback journal,
synchronous=FULL.
"""

from enum import StrEnum
from typing import Any

from pydantic import Field

from backend.options import Frozen
from backend.publish import PublishOptions


class JobState(StrEnum):
    """Where a job stands; the last four are final until somebody retries."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    ERROR = "error"
    CANCELED = "canceled"
    WAITING_FOR_LOGIN = "waiting_for_login"
    INTERRUPTED = "interrupted"


class Publication(Frozen):
    """A job that publishes an artifact of another job."""

    job_id: str
    stage: str = Field(description="Folder of the artifact in that job: 1-quantize.")
    options: PublishOptions


class Job(Frozen):
    """One row."""

    id: str = Field(description="128 random bits, hex.")
    owner: str
    kind: str = Field(description="recipe or publication.")
    spec: dict[str, Any] = Field(description="The Recipe or Publication as JSON.")
    state: JobState
    steps: tuple[str, ...] = Field(description="Names of its steps: fetch, quantize, evaluate, publish.")
    step: int = Field(0, description="Index of the step that runs or would run next.")
    attempt: int = Field(0, description="How often it was resumed by itself.")
    created: float
    started: float | None = None
    finished: float | None = None
    error: str | None = None
    progress: dict[str, Any] | None = Field(None, description="The last progress event.")
