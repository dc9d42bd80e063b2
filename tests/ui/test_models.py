"""What one can chat with in the page, and what becomes of a chat when a job wants the GPU."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from backend.artifacts.artifact import Artifact, now
from backend.artifacts.sealing import partial, seal
from backend.errors import JobError, SpecError
from backend.jobs.store import JobState, Store
from backend.jobs.supervisor import Supervisor
from backend.machine import hardware
from backend.models.demo import demo_facts
from backend.recipes import Recipe, parse_recipe
from backend.serve import servers as pool
from backend.serve.servers import Servers
from backend.settings import Settings
from ui import studio as studios
from ui.page import build_parts
from ui.recipe.events import wire_sidebar
from ui.recipe_state import Workbench
from ui.studio import Studio
from ui.visitor import LOCAL

NF4, GPTQ = {"stage": "quantize", "method": "nf4"}, {"stage": "quantize", "method": "gptq"}
EVALUATE = {"stage": "evaluate", "max_seq_length": 32, "num_samples": 1}


def recipe(*stages: dict[str, Any]) -> Recipe:
    return parse_recipe({"base_model": "demo", "stages": stages})


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    settings = Settings(data=tmp_path, cancel_seconds=1)
    supervisor = Supervisor(settings)
    supervisor.start()
    yield Studio(settings, supervisor, Servers(settings, gpu_is_used=supervisor.uses_gpu))
    supervisor.stop()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that says it has a GPU."""
    for module in (studios, pool):
        monkeypatch.setattr(module, "gpus", lambda: ("NVIDIA H200, 143771 MiB",))


def ended(studio: Studio, *kinds: str) -> tuple[str, Path]:
    """Leave a job that has fetched the model `here`, and made artifacts of these kinds; give its id and the model."""
    model = studio.settings.models / "here"
    model.mkdir(parents=True, exist_ok=True)
    (model / "model.safetensors").write_bytes(bytes(2000))
    store = Store(studio.settings.data / "jobs.sqlite")
    job_id = store.add(recipe(NF4), LOCAL)
    store.finish(job_id, JobState.CANCELED)
    store.close()
    stages = studio.settings.jobs / job_id / "stages"
    fetch = partial(stages / "0-fetch")
    (fetch / "model.json").write_text(json.dumps({"folder": str(model)}))
    seal(fetch, stages / "0-fetch", Artifact(kind="model", stage="fetch", created=now()))
    for i, kind in enumerate(kinds, 1):
        place = stages / f"{i}-quantize"
        seal(partial(place), place, Artifact(kind=kind, stage="quantize", options=NF4, created=now()))
    return job_id, model


def test_the_model_that_jobs_began_with_is_offered_once_after_what_they_made(studio: Studio) -> None:
    first, model = ended(studio, "quantized")
    second, _ = ended(studio)
    offered = studio.models(LOCAL)
    assert [(found.key, found.folder.name) for found in offered] == [
        (f"{first}/1-quantize", "1-quantize"),
        (f"{second}/base", "here"),
    ]
    base = studio.model(f"{second}/base", LOCAL)
    assert (base.folder, base.title) == (model, "base: SmolLM2-135M-Instruct")
    assert base.label == "base: SmolLM2-135M-Instruct · 2.00 kB"
    with gr.Blocks():
        bench = build_parts(studio)
    compared = bench.chat.enter(LOCAL, None)[bench.chat.compare.models]
    assert compared["value"] == [f"{first}/1-quantize", f"{second}/base"]


def test_a_base_model_is_its_owners_and_gone_when_its_folder_is(studio: Studio) -> None:
    job_id, model = ended(studio)
    with pytest.raises(JobError, match="no such job"):
        studio.model(f"{job_id}/base", "somebody else")
    assert studio.models("somebody else") == []
    (model / "model.safetensors").unlink()
    model.rmdir()
    assert studio.models(LOCAL) == []
    with pytest.raises(SpecError, match="no longer here"):
        studio.model(f"{job_id}/base", LOCAL)


@pytest.mark.parametrize(
    ("stages", "needed"),
    [
        ([NF4], False),
        ([{"stage": "quantize", "method": "cast"}], False),
        ([{"stage": "merge", "adapters": ["me/law"]}], False),
        ([GPTQ], True),
        ([NF4, EVALUATE], True),
        ([{"stage": "finetune", "dataset": "demo"}], True),
    ],
)
def test_what_computes_on_a_gpu_is_known_before(stages: list[dict[str, Any]], needed: bool) -> None:
    assert recipe(*stages).uses_gpu is needed


@pytest.fixture
def loaded(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of the models that are loaded: one that a job made."""
    job_id, _ = ended(studio, "quantized")
    folders = [(studio.settings.jobs / job_id / "stages" / "1-quantize").resolve()]
    monkeypatch.setattr(studio.servers, "live", lambda: folders)
    monkeypatch.setattr(studio.servers, "stop", folders.remove)
    return folders


def pressing(studio: Studio) -> tuple[Workbench, Any]:
    """Return a page, and what presses the button that a handler of this name belongs to."""
    with gr.Blocks() as page:
        bench = build_parts(studio)
        wire_sidebar(bench)
    values = {component: getattr(component, "value", None) for component in bench.inputs()}
    values |= {bench.model.facts: demo_facts(), bench.recipe.pasted: None}
    handlers = {fn.name: fn.fn for fn in page.fns.values()}
    return bench, lambda name: handlers[name](values, None, None)


def jobs(studio: Studio) -> int:
    return sum(job.state == JobState.QUEUED or job.state == JobState.RUNNING for job in studio.supervisor.list(LOCAL))


def test_a_job_that_needs_the_gpu_asks_before_it_unloads_a_model(studio: Studio, gpu: None, loaded: list[Path]) -> None:
    bench, press = pressing(studio)
    question = bench.sidebar.question
    asked = press("start")
    assert asked[question.room]["visible"]
    assert "SmolLM2-135M-Instruct · NF4 is loaded on the GPU, which this job needs" in asked[question.text]
    assert (jobs(studio), len(loaded)) == (0, 1)

    begun = press("unload")
    model = studio.settings.models / "here"
    (model / "config.json").write_text('{"model_type": "llama"}')
    assert begun[question.room]["visible"] is False
    assert (jobs(studio), loaded) == (1, [])
    with pytest.raises(JobError, match="A job is using the GPU, or waits for it: wait until it has ended, or cancel"):
        studio.servers.open(model)


def test_a_model_of_somebody_else_is_neither_named_nor_unloaded(studio: Studio, gpu: None, loaded: list[Path]) -> None:
    with pytest.raises(
        JobError, match=r"^Another visitor has loaded a model on the GPU.*it has not been used for 15 min\.$"
    ):
        studio.in_the_way(recipe(GPTQ), "somebody else")
    assert len(loaded) == 1
    assert studio.in_the_way(recipe(NF4), "somebody else") == []


def test_without_a_gpu_nothing_is_asked(studio: Studio, loaded: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studios, "gpus", lambda: ())
    bench, press = pressing(studio)
    assert press("start")[bench.sidebar.question.room]["visible"] is False
    assert (jobs(studio), len(loaded)) == (1, 1)


@pytest.mark.parametrize(
    ("told", "held"), [("7, 1024\n8, 2048\n9, 512\n", 1536 * 2**20), ("8, 2048\n", None), ("7, [N/A]\n", None)]
)
def test_the_memory_of_a_gpu_is_told_where_nvidias_tool_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, held: int | None
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware.gpu_memory_bytes({7, 9}) is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{told.replace(chr(10), chr(92) + 'n')}'\n")
    tool.chmod(0o755)
    assert hardware.gpu_memory_bytes({7, 9}) == held
