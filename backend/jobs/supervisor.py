"""The supervisor: takes queued jobs one after the other, runs them, and picks up what a crash left behind.

It lives in the app, which alone writes the database and alone holds tokens, in memory. One supervisor a data folder.
"""

import re
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from backend.artifacts.artifact import METRICS
from backend.artifacts.sealing import is_sealed
from backend.artifacts.training_log import STOP, Course, read_course
from backend.disk import PARTIAL, clear, forget, lock, read_lines, words
from backend.errors import AppError, JobError, LoginError
from backend.executors.contract import Executor
from backend.executors.local import Local
from backend.jobs.job import holds_spec, published
from backend.jobs.previews import Seen, read_seen, take_over
from backend.jobs.runner import EVENTS, Canceled, Interrupted, Run, tidy
from backend.jobs.store import UNFINISHED, UNREADABLE, Job, JobState, Store, new_id
from backend.jobs.uploads import Uploads
from backend.processes.marks import marker_prefix, sweep
from backend.settings import Settings
from backend.spec import Preview, Spec
from backend.stages import STEPS
from backend.stages.kinds import KINDS
from backend.stages.work import artifacts, stage_folder

LANES = [[name for name, spec in KINDS.items() if spec.lane == lane] for lane in ("machine", "uploads", "looks")]
"""Kinds of jobs that wait for each other: one job at a time has the GPU, and neither an upload nor a look at rows need
wait for it; the check before an upload does.
"""

PREVIEW = "preview"

ATTEMPTS = 2  # times that an interrupted job is put back into the queue by itself
LOG_LINES = 400
SETTLING_SECONDS = 0.05  # that a new job stays in the queue: those that come together are taken in a fair order
CLEANING_SECONDS = 600  # between two looks for uploads that no job needs any more
LEFT_DAYS = 7  # that what a killed process has left, such as half a download, waits for one that goes on with it


class Supervisor:
    """Runs the jobs of one data folder; every method that takes an owner touches that owner's jobs only.

    Attributes:
        uploads: What jobs read of their owners' own.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._home = settings.data.resolve()
        self._executor: Executor = Local(self._home, settings)
        self.uploads = Uploads(settings)
        self._tokens: dict[str, str] = {}
        self._progress: dict[str, dict[str, Any]] = {}
        self._said = Counter[str]()
        self._wake = threading.Condition()
        self._closing = threading.Event()
        self._running: dict[str, Run] = {}
        self._begun: set[str] = set()  # jobs that this app has begun, until their end is noted
        self._turn = threading.RLock()  # held while a job leaves the queue: it is canceled there, or its run is
        self._machine = threading.Semaphore()
        self._lanes = [threading.Thread(target=self._loop, args=(kinds,), daemon=True) for kinds in LANES]
        self._lanes.append(threading.Thread(target=self._keep_clean, daemon=True))

    def start(self) -> None:
        """Lock the data folder, pick up what an earlier app left, begin.

        Raises:
            JobError: Another app works on this data folder; its process number.
        """
        self._settings.jobs.mkdir(parents=True, exist_ok=True)
        self._lock = lock(self._home / "app.lock")
        sweep(marker_prefix(self._home))
        table = self._home / "jobs.sqlite"
        known = table.is_file()
        self._store = Store(table)
        for job in self._store.of_kind(PREVIEW):
            self._discard(job.id)
        self._remove_strays(known)
        clear(self._home)
        for folder in self._settings.jobs.iterdir():
            with suppress(OSError):  # a full disk: it is tidied when there is room
                tidy(folder)
        for job in self._store.in_state(JobState.RUNNING, JobState.INTERRUPTED):
            self._interrupted(job, "The studio was stopped while this job ran.")
        for lane in self._lanes:
            lane.start()

    def stop(self) -> None:
        """Stop the running job, which goes on at the next start, and let go of the folder."""
        self._closing.set()
        self._look()
        for run in [*self._running.values()]:
            run.cancel()
        for lane in self._lanes:
            lane.join(self._settings.cancel_seconds + 10)
        self._store.close()
        self._lock.close()

    def submit(self, spec: Spec, owner: str, token: str | None) -> str:
        """Queue a job and give its id.

        Raises:
            JobError: The owner has too many jobs waiting.
        """
        waiting = [job for job in self.list(owner) if job.state == JobState.QUEUED]
        if len(waiting) >= self._settings.max_queued:
            raise JobError(f"You have {len(waiting)} jobs waiting already: cancel one, or wait until one is done.")
        return self._add(spec, owner, token, new_id())

    def preview(self, spec: Preview, owner: str, token: str | None) -> str:
        """Look at rows, in place of what the owner looked at before for the same end, and give the new job's id."""
        job_id, calibrates = new_id(), spec.cut is not None
        for job in self._store.of_kind(PREVIEW, owner):
            if job.kind == PREVIEW and (job.spec.get("cut") is not None) != calibrates:
                continue
            take_over(spec, self._settings.jobs / job_id, self._settings.jobs / job.id)
            self._discard(job.id)
        return self._add(spec, owner, token, job_id)

    def seen(self, job_id: str, owner: str) -> Seen:
        """Return what a preview has found so far."""
        spec = self._store.get(job_id, owner).read_spec()
        assert isinstance(spec, Preview)
        return read_seen(self._settings.jobs / job_id, spec)

    def cancel(self, job_id: str, owner: str) -> None:
        """Cancel a job; what it has sealed stays."""
        with self._turn:
            if self._store.get(job_id, owner).state == JobState.QUEUED:
                self._store.finish(job_id, JobState.CANCELED)
                self._tokens.pop(job_id, None)
            elif run := self._running.get(job_id):
                run.cancel()

    def stop_training(self, job_id: str, owner: str) -> None:
        """Have a training end after the step that it is at and keep what was learned; the job's later steps follow.

        Raises:
            JobError: The job is at no training.
        """
        if not self._store.get(job_id, owner).trains:
            raise JobError("The job is at no training: only a training can be stopped and kept.")
        try:
            (self._settings.jobs / job_id / STOP).touch()
        except OSError as e:
            raise JobError(words(e)) from e

    def stopping(self, job_id: str, owner: str) -> bool:
        """Return whether a training that runs was asked to end."""
        return self._store.get(job_id, owner).trains and (self._settings.jobs / job_id / STOP).exists()

    def course(self, job_id: str, owner: str) -> Course | None:
        """Return how a job's training goes, or went; None where nothing was measured yet."""
        job = self._store.get(job_id, owner)
        training = next((i for i, name in enumerate(job.steps) if STEPS[name].stoppable), None)
        if training is None:
            return None
        sealed = stage_folder(self._settings.jobs / job_id, job.read_spec(), training)
        folder = sealed if is_sealed(sealed) else sealed.with_name(sealed.name + PARTIAL)
        return read_course(folder) if (folder / METRICS).is_file() else None

    def retry(self, job_id: str, owner: str, token: str | None) -> None:
        """Put a job that ended early, or has lost a result, back into the queue; what is sealed stays."""
        job = self._store.get(job_id, owner)
        if job.state in UNFINISHED or (job.state == JobState.COMPLETED and not self.lost(job_id, owner)):
            raise JobError(f"The job is {job.state.value}: there is nothing to retry.")
        job.read_spec()
        if token:
            self._tokens[job_id] = token
        (self._settings.jobs / job_id / STOP).unlink(missing_ok=True)
        self._store.requeue(job_id)
        self._look()

    def lost(self, job_id: str, owner: str) -> list[str]:
        """Return the steps of a completed job whose results are damaged or gone: retrying makes them again."""
        job = self._store.get(job_id, owner)
        if job.state != JobState.COMPLETED:
            return []
        stages = self._settings.jobs / job_id / "stages"
        return [name for i, name in enumerate(job.steps) if not is_sealed(stages / f"{i}-{name}")]

    def delete(self, job_id: str, owner: str) -> None:
        """Delete a job that has ended, with everything that it made.

        Raises:
            JobError: It has not ended.
        """
        job = self._store.get(job_id, owner)
        if job.state in UNFINISHED:
            raise JobError("The job has not ended: cancel it first.")
        self._discard(job_id)

    def clean(self) -> None:
        """Delete what nobody needs any more: uploads that no job reads, since one that is completed is never retried,
        and what killed processes left long ago.
        """
        for place, left in ((self._settings.models, f"**/*{PARTIAL}"), (self._home / "servers", "*")):
            forget(place, left, LEFT_DAYS)
        forget(self._home, f"*{PARTIAL}", LEFT_DAYS)
        jobs = self._store.in_state(*(state for state in JobState if state != JobState.COMPLETED))
        self.uploads.clean({str(path) for job in jobs if job.kind != UNREADABLE for path in job.read_spec().files()})

    def get(self, job_id: str, owner: str) -> Job:
        """Return a job with its progress."""
        return self._with_progress(self._store.get(job_id, owner))

    def said(self, job_id: str) -> int:
        """Count what a running job has logged and measured."""
        return self._said[job_id]

    def uses_gpu(self) -> bool:
        """Return whether anybody's job computes on the GPU, or waits to."""
        return any(job.read_spec().uses_gpu for job in self._store.in_state(*UNFINISHED))

    def log(self, job_id: str, owner: str) -> str:
        """Return the last lines of what the job said, oldest first."""
        self._store.get(job_id, owner)
        events = read_lines(self._settings.jobs / job_id / EVENTS)
        said = {"log": "{text}", "step": "— {name} —"}
        lines = [said[e["event"]].format_map({"text": "", "name": "", **e}) for e in events if e.get("event") in said]
        return "\n".join(lines[-LOG_LINES:])

    def artifacts(self, job_id: str, owner: str) -> list[Path]:
        """Return the sealed artifacts with weights that a job has made so far."""
        self._store.get(job_id, owner)
        return artifacts(self._settings.jobs / job_id)

    def published(self, job_id: str, owner: str) -> list[dict[str, Any]]:
        """Return where a job's artifacts were published, once it has published them."""
        return published(self._settings.jobs / job_id, self._store.get(job_id, owner).read_spec())

    def _add(self, spec: Spec, owner: str, token: str | None, job_id: str) -> str:
        if token:
            self._tokens[job_id] = token
        try:
            self._store.add(spec, owner, job_id)
        except JobError:
            self._tokens.pop(job_id, None)
            raise
        self._look()
        return job_id

    def _discard(self, job_id: str) -> None:
        """Forget a job; where it runs, its run is canceled and removes the folder when it has ended."""
        with self._turn:
            self._store.delete(job_id)
            run = self._running.get(job_id)
        if run:
            run.cancel()
        else:
            self._tokens.pop(job_id, None)
            shutil.rmtree(self._settings.jobs / job_id, ignore_errors=True)

    def _with_progress(self, job: Job) -> Job:
        return job.model_copy(update={"progress": self._progress.get(job.id)}) if job.state == JobState.RUNNING else job

    def _look(self) -> None:
        """Have every lane look for work."""
        with self._wake:
            self._wake.notify_all()

    def _loop(self, kinds: Sequence[str]) -> None:
        while not self._closing.is_set():
            if job := self._next(kinds):
                # In a thread of its own: what nobody foresaw ends that thread, and the lane goes on.
                runs = threading.Thread(target=self._run, args=(job,), daemon=True)
                runs.start()
                runs.join()
                continue
            with self._wake:
                woken = self._wake.wait(1)
            if woken:
                self._closing.wait(SETTLING_SECONDS)

    def _next(self, kinds: Sequence[str]) -> Job | None:
        """Take the next job out of the queue; None where there is none, or the table cannot be written just now."""
        with suppress(sqlite3.Error), self._turn:
            for ended in self._begun - self._running.keys():  # whose end could not be noted
                self._leave(ended)
            job = self._store.claim(kinds)
            if job and job.kind == UNREADABLE:
                self._store.finish(job.id, JobState.ERROR, job.error)
            elif job:
                place = self._settings.jobs / job.id
                self._running[job.id] = Run(place, job.read_spec(), self._executor, self._settings, self._machine)
                self._begun.add(job.id)
                return job
        return None

    def _keep_clean(self) -> None:
        while not self._closing.is_set():
            with suppress(OSError, sqlite3.Error):
                self.clean()
            self._closing.wait(CLEANING_SECONDS)

    def _remove_strays(self, known: bool) -> None:
        """Remove folders of jobs that there are not: an app was killed while it deleted one.

        Args:
            known: Whether the table was there already. Beside a new one, since the old was moved away or lost, what a
                job was begun in stays; and so does what a row names but for one letter, which is damaged.
        """
        ids = self._store.ids()
        for folder in self._settings.jobs.iterdir():
            damaged = any(sum(a != b for a, b in zip(folder.name, job_id, strict=False)) <= 1 for job_id in ids)
            if re.fullmatch("[0-9a-f]{32}", folder.name) and not damaged and (known or not holds_spec(folder)):
                shutil.rmtree(folder, ignore_errors=True)

    def _run(self, job: Job) -> None:
        run = self._running[job.id]
        if self._closing.is_set():  # between the claim and this line
            run.cancel()
        try:
            run.go(self._token(job), lambda event: self._hear(job.id, event))
        except Canceled:
            if self._closing.is_set():
                self._store.requeue(job.id, job.attempt)
            else:
                self._store.finish(job.id, JobState.CANCELED)
        except Interrupted as e:
            self._interrupted(job, str(e))
        except LoginError as e:
            self._store.finish(job.id, JobState.WAITING_FOR_LOGIN, str(e))
        except AppError as e:
            self._store.finish(job.id, JobState.ERROR, str(e))
        except OSError as e:
            self._store.finish(job.id, JobState.ERROR, words(e))
        else:
            self._store.finish(job.id, JobState.COMPLETED)
        finally:
            self._running.pop(job.id, None)
            self._progress.pop(job.id, None)
            self._said.pop(job.id, None)
            self._leave(job.id)

    def _leave(self, job_id: str) -> None:
        """See that a job that has ended says so, that its token goes with it, and its folder if it was deleted."""
        if not self._store.has(job_id):
            self._discard(job_id)
        else:
            state = self._store.get(job_id).state
            if state == JobState.RUNNING:
                self._store.finish(job_id, JobState.ERROR, "The studio failed at this job: retry it, or report it.")
            if state != JobState.QUEUED:  # a job that goes on by itself goes on with its token
                self._tokens.pop(job_id, None)
        self._begun.discard(job_id)

    def _token(self, job: Job) -> str | None:
        """Return the token that came with the job; on one's own machine, that of `hf auth login`."""
        from huggingface_hub import get_token

        return self._tokens.get(job.id) or (None if self._settings.on_space else get_token())

    def _interrupted(self, job: Job, reason: str) -> None:
        if job.attempt < ATTEMPTS:
            self._store.requeue(job.id, job.attempt + 1)
        else:
            self._store.finish(job.id, JobState.ERROR, f"Gave up after {ATTEMPTS + 1} attempts. {reason}")

    def _hear(self, job_id: str, event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            self._progress[job_id] = event
        elif event["event"] == "step":
            self._progress.pop(job_id, None)
            self._store.update(job_id, step=event["index"])
        if event["event"] != "progress":
            self._said[job_id] += 1

    def all(self, owner: str) -> list[Job]:
        """Return an owner's jobs, the newest first, and what looks at rows for them."""
        return [self._with_progress(job) for job in self._store.of(owner)]

    def list(self, owner: str) -> list[Job]:
        """Return an owner's jobs, the newest first; a preview is none to them."""
        return [job for job in self.all(owner) if job.kind != PREVIEW]
