"""Jobs on a bad day: rows and folders that are damaged, kills between two steps of the same thing."""

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from backend.artifacts.artifact import CHECKPOINTS, MANIFEST, Artifact, now
from backend.artifacts.sealing import is_sealed, partial, seal
from backend.disk import JOURNAL, PREFIX, lock
from backend.errors import JobError
from backend.jobs.foreground import finished, identity
from backend.jobs.job import write_spec
from backend.jobs.runner import tidy
from backend.jobs.store import UNREADABLE, Job, JobState, Store, new_id
from backend.jobs.supervisor import LANES, LEFT_DAYS, Supervisor
from backend.recipes import parse_recipe
from backend.serve.servers import Servers
from backend.settings import Settings
from backend.stages.kinds import KINDS
from backend.stages.work import MODEL, Fetched, stage_folder
from ui.jobs.job import row, view
from ui.jobs.tab import build_jobs_tab
from ui.studio import Studio

RECIPE = parse_recipe({"base_model": "demo", "stages": [{"stage": "quantize", "method": "nf4"}]})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(data=tmp_path / "data", cancel_seconds=1)
    made.jobs.mkdir(parents=True)
    return made


@pytest.fixture
def open_supervisor(settings: Settings) -> Iterator[Callable[[], Supervisor]]:
    """Start supervisors that nobody runs jobs for: what waits goes on waiting."""
    started = []

    def start() -> Supervisor:
        supervisor = Supervisor(settings)
        supervisor._lanes = []
        supervisor.start()
        started.append(supervisor)
        return supervisor

    yield start
    for supervisor in started:
        supervisor.stop()


@contextmanager
def rows_of(settings: Settings) -> Iterator[sqlite3.Connection]:
    """Open the table as another program would."""
    db = sqlite3.connect(settings.data / "jobs.sqlite", isolation_level=None)
    yield db
    db.close()


DAMAGES = {
    "a state of another version": "state = 'paused'",
    "a state with a flipped bit": "state = CAST(x'72756e6eE96e67' AS TEXT)",
    "a kind of another version": "kind = 'dream', state = 'queued'",
    "a spec that is cut": "state = 'running'",
    "a spec that is empty": "state = state",
    "a spec that is gone": "state = state",
    "a spec of another version": "state = 'queued'",
    "a spec of another type": "state = 'running'",
    "a spec with a flipped bit": "state = state",
    "a step that there is not": "step = 99, state = 'running'",
    "a time that there is not": "created = 9e300",
}


SPECS: dict[str, Callable[[bytes], bytes]] = {
    "a spec that is cut": lambda spec: spec[:20],
    "a spec that is empty": lambda spec: b"",
    "a spec of another version": lambda spec: b'{"base_model": "demo"}',
    "a spec of another type": lambda spec: b"[1, 2]",
    "a spec with a flipped bit": lambda spec: spec[:9] + b"\xff",
}
"""What became of the file that a job's folder holds of its spec, beside the row."""


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_row_that_cannot_be_read_hides_no_other_and_can_be_deleted(
    damage: str, settings: Settings, open_supervisor: Callable[[], Supervisor]
) -> None:
    store = Store(settings.data / "jobs.sqlite")
    bad, other = store.add(RECIPE, "me"), store.add(RECIPE, "me")
    for job_id in (bad, other):
        store.finish(job_id, JobState.CANCELED)
        (settings.jobs / job_id / "stages").mkdir(parents=True)
    store.close()
    with rows_of(settings) as db:
        db.execute(f"UPDATE jobs SET {DAMAGES[damage]} WHERE id = ?", (bad,))
    spec = settings.jobs / bad / "recipe.json"
    if damage in SPECS:
        spec.write_bytes(SPECS[damage](spec.read_bytes()))
    elif damage == "a spec that is gone":
        spec.unlink()
    supervisor = open_supervisor()
    new = supervisor.submit(RECIPE, "me", None)
    jobs = {job.id: job for job in supervisor.list("me")}
    assert set(jobs) == {bad, other, new}
    assert (jobs[bad].kind, jobs[bad].state) == (UNREADABLE, JobState.ERROR)
    assert "cannot be read" in view(jobs[bad])
    assert "Unreadable job" in row(jobs[bad])
    for door in (supervisor.artifacts, supervisor.log, supervisor.course, supervisor.stopping, supervisor.lost):
        assert not door(bad, "me")
    with pytest.raises(JobError, match="Delete it"):
        supervisor.retry(bad, "me", None)
    assert not supervisor.uses_gpu()
    supervisor.clean()
    assert (settings.jobs / bad).exists()
    supervisor.delete(bad, "me")
    assert {job.id for job in supervisor.list("me")} == {other, new}
    assert not (settings.jobs / bad).exists()
    assert supervisor.get(other, "me").state == JobState.CANCELED


def test_a_queued_job_that_cannot_be_read_ends_in_words_and_the_next_one_is_taken(settings: Settings) -> None:
    store = Store(settings.data / "jobs.sqlite")
    bad = store.add(RECIPE, "me")
    store.close()
    (settings.jobs / bad / "recipe.json").write_text("{}")
    supervisor = Supervisor(settings)
    supervisor._lanes = []
    supervisor.start()
    good = supervisor.submit(RECIPE, "me", None)
    assert supervisor._next(("recipe",)) is None
    taken = supervisor._next(("recipe",))
    assert taken
    assert taken.id == good
    with rows_of(settings) as db:
        assert db.execute("SELECT state FROM jobs WHERE id = ?", (bad,)).fetchone() == ("error",)
    supervisor.stop()


def begun(folder: Path) -> Path:
    """Make a job's folder as a run leaves it."""
    write_spec(folder, RECIPE)
    draft = partial(stage_folder(folder, RECIPE, 1))
    (draft / "model.safetensors").write_bytes(b"weights")
    seal(draft, stage_folder(folder, RECIPE, 1), Artifact(kind="quantized", stage="quantize", created=now()))
    return folder


def test_a_folder_of_no_job_goes_at_the_next_start(
    settings: Settings, open_supervisor: Callable[[], Supervisor]
) -> None:
    store = Store(settings.data / "jobs.sqlite")
    known, damaged = store.add(RECIPE, "me"), store.add(RECIPE, "me")
    store.close()
    with rows_of(settings) as db:
        db.execute("UPDATE jobs SET id = 'x' || substr(id, 2) WHERE id = ?", (damaged,))
    folders = {name: begun(settings.jobs / name) for name in (known, damaged, new_id())}
    half_deleted, others = settings.jobs / new_id(), settings.jobs / "notes of its owner"
    for folder in (half_deleted / "stages", others):
        folder.mkdir(parents=True)
    open_supervisor()
    assert {path.name for path in settings.jobs.iterdir()} == {known, damaged, others.name}
    assert is_sealed(stage_folder(folders[damaged], RECIPE, 1))


def test_beside_a_table_that_is_new_no_result_is_deleted(
    settings: Settings, open_supervisor: Callable[[], Supervisor]
) -> None:
    made, half_deleted = begun(settings.jobs / new_id()), settings.jobs / new_id() / "stages"
    half_deleted.mkdir(parents=True)
    open_supervisor()  # its owner was told to move the old table away
    assert is_sealed(stage_folder(made, RECIPE, 1))
    assert not half_deleted.exists()


def test_what_killed_processes_left_goes_after_a_while_and_what_is_in_use_stays(
    settings: Settings, open_supervisor: Callable[[], Supervisor]
) -> None:
    old = [settings.models / "me--tiny" / "abc.partial" / "model.safetensors", settings.data / "servers" / "a.log"]
    old += [settings.data / "calibration.json.0123abcd.partial", settings.data / f"{PREFIX}left" / "x"]
    new = [settings.models / "me--tiny" / "def.partial" / "model.safetensors", settings.models / "demo" / MANIFEST]
    for path in (*old, *new):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    long_ago = time.time() - (LEFT_DAYS + 1) * 86_400
    for path in (*old, new[1]):
        for each in (path, path.parent):
            Path(each).touch()
            os.utime(each, (long_ago, long_ago))
    open_supervisor().clean()
    assert not [path for path in old if path.exists()]
    assert all(path.exists() for path in new)


def test_a_step_that_was_killed_before_it_got_its_name_is_done(tmp_path: Path) -> None:
    draft = partial(stage_folder(tmp_path, RECIPE, 1))
    (draft / "model.safetensors").write_bytes(b"weights")
    (draft / JOURNAL).write_text("{}")
    (draft / CHECKPOINTS / "checkpoint-4").mkdir(parents=True)
    target = stage_folder(tmp_path, RECIPE, 1)
    seal(draft, target, Artifact(kind="quantized", stage="quantize", created=now()))
    assert sorted(path.name for path in target.iterdir()) == [MANIFEST, "model.safetensors"]
    target.rename(draft)  # as it was a moment before
    (draft / JOURNAL).write_text("{}")
    tidy(tmp_path)
    assert is_sealed(target)
    assert sorted(path.name for path in target.iterdir()) == [MANIFEST, "model.safetensors"]


def test_a_folder_that_cannot_be_tidied_keeps_no_app_from_starting(
    settings: Settings, open_supervisor: Callable[[], Supervisor]
) -> None:
    store = Store(settings.data / "jobs.sqlite")
    job_id = store.add(RECIPE, "me")
    store.finish(job_id, JobState.ERROR)
    store.close()
    target = stage_folder(settings.jobs / job_id, RECIPE, 1)
    draft = partial(target)
    draft.rename(target.with_name("kept"))
    seal(target.with_name("kept"), draft, Artifact(kind="quantized", stage="quantize", created=now()))
    target.write_text("no folder has a place here, as on a disk that is full")
    assert open_supervisor().get(job_id, "me").state == JobState.ERROR
    assert is_sealed(draft)


def test_what_is_sealed_takes_the_place_of_what_is_damaged_and_not_before(tmp_path: Path) -> None:
    target = stage_folder(tmp_path, RECIPE, 1)
    for text in ("first", "second"):
        draft = partial(target)
        assert not target.exists() or (target / "a.txt").read_text() == "first"
        (draft / "a.txt").write_text(text)
        seal(draft, target, Artifact(kind="quantized", stage="quantize", created=now()))
    assert (target / "a.txt").read_text() == "second"
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_every_kind_of_job_has_one_lane_and_a_title() -> None:
    assert sorted(kind for lane in LANES for kind in lane) == sorted(KINDS)
    look = {"base_model": "demo", "options": {}}
    measure = {"folder": "/x/made", "reference": "demo", "options": {}}
    specs = {
        "recipe": RECIPE.model_dump(mode="json"), "streaming": {"recipe": RECIPE.model_dump(mode="json")},
        "publication": {"folder": "/x/made", "options": {"repo_id": "me/x"}}, "evaluation": measure,
        "checking": {"folder": "/x/made", "options": {}}, "preview": look,
    }  # fmt: skip
    for kind in KINDS:
        job = Job(id=new_id(), owner="me", kind=kind, spec=specs[kind], state=JobState.QUEUED, steps=("fetch",),
                  created=1.0)  # fmt: skip
        assert row(job).strip()


def test_a_completed_job_whose_result_is_damaged_can_be_retried(
    settings: Settings, open_supervisor: Callable[[], Supervisor]
) -> None:
    supervisor = open_supervisor()
    job_id = supervisor.submit(RECIPE, "me", None)
    folder = begun(settings.jobs / job_id)
    seal(partial(stage_folder(folder, RECIPE, 0)), stage_folder(folder, RECIPE, 0),
         Artifact(kind="model", stage="fetch", created=now()))  # fmt: skip
    store = Store(settings.data / "jobs.sqlite")
    store.finish(job_id, JobState.COMPLETED)
    with pytest.raises(JobError, match="nothing to retry"):
        supervisor.retry(job_id, "me", None)
    (stage_folder(folder, RECIPE, 1) / MANIFEST).write_text("{")
    assert supervisor.lost(job_id, "me") == ["quantize"]
    supervisor.retry(job_id, "me", None)
    assert supervisor.get(job_id, "me").state == JobState.QUEUED
    store.close()


@pytest.mark.parametrize("behind", ["merge", "quantize", "check"])
def test_an_adapter_is_offered_although_what_came_behind_it_failed(
    behind: str, settings: Settings, open_supervisor: Callable[[], Supervisor]
) -> None:
    stages = {"merge": [{"stage": "merge"}], "check": [{"stage": "check"}]}
    stages["quantize"] = [*stages["merge"], {"stage": "quantize", "method": "nf4"}]
    spec = parse_recipe({"base_model": "demo", "stages": [{"stage": "finetune"}, *stages[behind]]})
    supervisor = open_supervisor()
    job_id = supervisor.submit(spec, "me", None)
    adapter = stage_folder(settings.jobs / job_id, spec, 1)
    seal(partial(adapter), adapter, Artifact(kind="adapter", stage="finetune", created=now()))
    partial(stage_folder(settings.jobs / job_id, spec, len(spec.stages)))
    store = Store(settings.data / "jobs.sqlite")
    store.finish(job_id, JobState.ERROR, "It does not fit.")
    store.close()
    studio = Studio(settings, supervisor, Servers(settings))
    assert [result.folder for result in studio.results("me")] == [adapter]
    assert studio.results_of(supervisor.get(job_id, "me"), "me")[0].artifact.kind == "adapter"


def test_the_page_shows_what_is_damaged_and_what_can_be_done(
    settings: Settings, open_supervisor: Callable[[], Supervisor]
) -> None:
    supervisor = open_supervisor()
    bad, lost = (supervisor.submit(RECIPE, "me", None) for _ in range(2))
    with rows_of(settings) as db:
        db.execute("UPDATE jobs SET kind = 'dream' WHERE id = ?", (bad,))
        db.execute("UPDATE jobs SET state = 'completed', finished = 1.0 WHERE id = ?", (lost,))
    begun(settings.jobs / lost)  # but for what it fetched
    studio = Studio(settings, supervisor, Servers(settings))
    with gr.Blocks():
        tab = build_jobs_tab(studio)
    shown = {job_id: tab.show("me", job_id) for job_id in (bad, lost)}
    assert "cannot be read" in shown[bad][tab.view]
    assert [shown[bad][button]["visible"] for button in (tab.retry, tab.delete)] == [False, True]
    assert "Damaged on this disk: fetch." in shown[lost][tab.view]
    assert shown[lost][tab.retry]["visible"]
    assert [model.job.id for model in studio.models("me")] == [lost]


def test_what_is_no_folder_of_a_run_ends_no_command(settings: Settings) -> None:
    runs = settings.data / "runs"
    (runs / "of long ago" / "run.lock").mkdir(parents=True)
    (runs / ".DS_Store").write_bytes(b"")
    (runs / "gone").symlink_to(settings.data / "nowhere")
    for path in (runs / "of long ago", runs / ".DS_Store"):
        os.utime(path, (0, 0))
    folder = runs / hashlib.sha256(identity(RECIPE).encode()).hexdigest()[:16]
    folder.mkdir()
    again = finished(RECIPE, None, lambda event: None, settings)
    with lock(folder / "run.lock"), pytest.raises(JobError, match="already runs"), again:
        pytest.fail("it ran twice")
    assert {path.name for path in runs.iterdir()} == {"of long ago", ".DS_Store", "gone", folder.name}


def test_a_command_that_failed_says_where_what_it_has_made_stays(settings: Settings, tiny_model: Path) -> None:
    stages = [{"stage": "quantize", "method": "nf4"}, {"stage": "evaluate"}]
    spec = parse_recipe({"base_model": str(tiny_model), "stages": stages}, paths=True)
    folder = settings.data / "runs" / hashlib.sha256(identity(spec).encode()).hexdigest()[:16]
    for index, kind in enumerate(("model", "quantized")):
        draft = partial(stage_folder(folder, spec, index))
        (draft / MODEL).write_text(Fetched(folder=tiny_model).model_dump_json())
        seal(draft, stage_folder(folder, spec, index), Artifact(kind=kind, stage="x", created=now()))
    heard: list[dict[str, Any]] = []
    with pytest.raises(JobError, match="text in '0-fetch'"), finished(spec, None, heard.append, settings):
        pytest.fail("it went on without the text")
    assert f"what is done stays.\n{stage_folder(folder, spec, 1)}" in heard[-1]["text"]
    assert is_sealed(stage_folder(folder, spec, 1))
