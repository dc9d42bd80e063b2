"""Jobs that write several layouts: text is read once, and whatever is killed or lost is made again without it."""

import json
import os
import shutil
import signal

import pytest

from backend.artifacts.sealing import open_artifact, verify
from backend.executors.local import Local
from backend.jobs.runner import Run
from backend.jobs.store import JobState
from backend.publish.card.card import build_card
from backend.recipes import parse_recipe
from tests.support.jobs import caught, finished

pytestmark = pytest.mark.real

STAGE = {"stage": "quantize", "method": "gptq", "group_size": 32, "num_calibration_samples": 4, "max_seq_length": 32}
LAYOUTS = ["gptq", "awq", "compressed-tensors"]
PHASE = "reading calibration text"


def recipe_of(hub, folder, **stage):
    commit = hub.add_model("me/tiny", folder)
    return parse_recipe({"base_model": "me/tiny", "revision": commit, "stages": [{**STAGE, **stage}]})


def steps_of(heard, phase):
    """Return the steps in which a phase was heard."""
    found, step = [], None
    for event in heard:
        step = event["index"] if event["event"] == "step" else step
        if event.get("phase") == phase and step not in found:
            found.append(step)
    return found


def test_one_calibration_makes_every_layout_as_it_is_alone(settings, hub, tiny_model):
    settings.data.mkdir()

    def run(name, **stage):
        heard = []
        spec = recipe_of(hub, tiny_model, **stage)
        Run(settings.jobs / name, spec, Local(settings.data, settings), settings).go(None, heard.append)
        return heard, sorted((settings.jobs / name / "stages").glob("*-quantize"))

    heard, folders = run("together", layouts=LAYOUTS)
    assert steps_of(heard, PHASE) == [1]
    assert steps_of(heard, "repacking") == [2, 3]
    for layout, folder in zip(LAYOUTS, folders, strict=True):
        artifact = verify(folder)
        assert artifact.options["layout"] == layout
        assert artifact.layouts == tuple(LAYOUTS)
        assert artifact.calibration == open_artifact(folders[0]).calibration
        assert "Calibrated once for | the layouts gptq, awq, compressed-tensors" in build_card(folder, None)
        _, [alone] = run(layout, layout=layout)
        expected, found = (
            {name: file for name, file in a.files.items() if name != "recipe.yaml"} for a in (verify(alone), artifact)
        )
        assert found == expected
        assert artifact.warnings == verify(alone).warnings
        assert verify(alone).layouts is None
    shutil.rmtree(folders[1])
    again = run("together", layouts=LAYOUTS)[0]
    assert [event["index"] for event in again if event["event"] == "step"] == [2, 3]
    assert steps_of(again, PHASE) == []


def test_a_job_killed_while_it_calibrates_and_while_it_packs_goes_on_and_calibrates_once(
    supervisor, settings, hub, tiny_model
):
    recipe = recipe_of(hub, tiny_model, layouts=["gptq", "compressed-tensors"])
    whole = supervisor.submit(recipe, "me", None)
    assert finished(supervisor, whole).state == JobState.COMPLETED
    job_id = supervisor.submit(recipe, "me", None)
    for step in (1, 2):
        os.kill(caught(settings, step), signal.SIGKILL)
    job = finished(supervisor, job_id)
    assert (job.state, job.attempt) == (JobState.COMPLETED, 2)
    heard = [*map(json.loads, (settings.jobs / job_id / "events.jsonl").read_text().splitlines())]
    assert [event["index"] for event in heard if event["event"] == "step"] == [0, 1, 1, 2, 2]
    assert steps_of(heard, PHASE) == [1]
    for one, other in zip(supervisor.artifacts(whole, "me"), supervisor.artifacts(job_id, "me"), strict=True):
        assert verify(one).files == verify(other).files
