"""Jobs that go on: what is damaged is made again, what was learned before a kill at the end is not learned again."""

import os
import signal

import pytest

from backend.artifacts.artifact import CHECKPOINTS, MANIFEST
from backend.artifacts.sealing import verify
from backend.disk import JOURNAL
from backend.executors.local import Local
from backend.finetune.checkpoints import is_sealed
from backend.jobs.runner import Run
from backend.jobs.store import JobState
from backend.recipes import parse_recipe
from tests.support.jobs import caught, finished
from tests.support.processes import until

pytestmark = pytest.mark.real


def test_what_is_damaged_of_a_job_is_made_again_with_what_came_after_it(settings, measured_recipe):
    heard = []
    folder = settings.jobs / "x"
    settings.data.mkdir()

    def run():
        heard.clear()
        Run(folder, measured_recipe, Local(settings.data, settings), settings).go(None, heard.append)
        return [event["name"] for event in heard if event["event"] == "step"]

    assert run() == ["fetch", "quantize", "evaluate"]
    assert run() == []
    stages = folder / "stages"
    for torn, again in {
        stages / "0-fetch" / "model.json": ["fetch"],
        folder / "recipe.json": [],
        stages / "1-quantize" / MANIFEST: ["quantize", "evaluate"],
    }.items():
        data = torn.read_bytes()
        torn.write_bytes(data[: len(data.rstrip()) // 2] + b"?" * (len(data) - len(data.rstrip()) // 2))
        assert run() == again, torn
        assert verify(stages / "1-quantize").metrics
    assert not list(folder.rglob("*.partial"))
    assert not list(folder.rglob(".weightsmith-*"))


def test_a_training_that_is_killed_behind_its_last_step_loses_nothing(supervisor, settings, hub, tiny_model):
    commit = hub.add_model("me/tiny", tiny_model)
    tune = {
        "stage": "finetune",
        "split": "train[:20]",
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "max_length": 64,
    }
    tuning = parse_recipe({"base_model": "me/tiny", "revision": commit, "stages": [tune]})
    job_id = supervisor.submit(tuning, "me", None)
    draft = settings.jobs / job_id / "stages" / "1-finetune.partial"
    until(lambda: is_sealed(draft / CHECKPOINTS / "checkpoint-2"))
    os.kill(caught(settings, 1), signal.SIGKILL)
    job = finished(supervisor, job_id)
    assert (job.state, job.attempt, job.error) == (JobState.COMPLETED, 1, None)
    assert "Going on after step 2." in supervisor.log(job_id, "me")
    [adapter] = supervisor.artifacts(job_id, "me")
    assert verify(adapter).training.steps == 2
    assert not (adapter / CHECKPOINTS).exists()
    assert not (adapter / JOURNAL).exists()
