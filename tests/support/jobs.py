"""A supervisor, recipes for it, and waiting for what it does."""

import os
import signal
from pathlib import Path

import pytest

from backend.jobs.store import JobState
from backend.processes.marks import marked, marker_prefix
from tests.support.processes import until

EVALUATE = {"stage": "evaluate", "max_seq_length": 32, "num_samples": 2, "dataset": "me/prose"}

FINAL = (JobState.COMPLETED, JobState.ERROR, JobState.CANCELED, JobState.WAITING_FOR_LOGIN)


def finished(supervisor, job_id, owner="me"):
    return until(lambda: (job := supervisor.get(job_id, owner)).state in FINAL and job)


def completed(supervisor, job_id, owner="me"):
    """Wait for a job that must succeed; one that does not leaves its error and its log in the report."""
    job = finished(supervisor, job_id, owner)
    if (job.state, job.error) != (JobState.COMPLETED, None):
        pytest.fail(f"The job is {job.state.value}: {job.error}\n{supervisor.log(job_id, owner)}")
    return job


def workers(settings, step):
    """Process numbers of the workers that do this step."""
    found = []
    for pid in marked(marker_prefix(settings.data)):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if command[1:3] == [b"-m", b"backend.jobs.worker"] and command[4] == str(step).encode():
            found.append(pid)
    return found


def caught(settings, step):
    """Stop the worker of a step in its tracks, so that it does not end before the test has done what it does."""
    worker = until(lambda: workers(settings, step))[0]
    os.kill(worker, signal.SIGSTOP)
    return worker
