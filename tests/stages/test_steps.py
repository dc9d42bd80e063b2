"""Steps: each stage and each kind of job finds the modules that do it, and a worker imports no other step's."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from backend import jobs
from backend.check import CheckOptions
from backend.evaluate import EvaluateOptions
from backend.finetune.options import FinetuneOptions
from backend.merge.options import MergeOptions
from backend.publish.options import PublishOptions
from backend.quantize import METHODS
from backend.recipes import Streaming, parse_recipe
from backend.spec import Preview, Spec
from backend.stage import Stage
from backend.stages import STEPS
from backend.stages.kinds import Checking, Evaluation, Publication

STAGES: list[Stage] = [
    FinetuneOptions(), MergeOptions(), EvaluateOptions(), CheckOptions(),
    *(module.Options() for module in METHODS.values()),
]  # fmt: skip

NF4 = {"stage": "quantize", "method": "nf4"}


def specs() -> list[Spec]:
    """Every kind of job, as long as it gets."""
    to = {"repo_id": "me/x"}
    recipe = parse_recipe({"base_model": "me/tiny", "stages": [NF4, {"stage": "evaluate"}], "publish": to})
    folder = Path("/x/made")
    return [
        recipe.model_copy(update={"converts": True}),
        Streaming(recipe=recipe),
        Publication(folder=folder, options=PublishOptions(repo_id="me/x"), elsewhere=True),
        Evaluation(folder=folder, reference="demo", options=EvaluateOptions(), converts=True),
        Checking(folder=folder, options=CheckOptions()),
        Preview(base_model="demo", options=FinetuneOptions()),
    ]


def test_every_stage_has_a_step_that_says_it_in_words() -> None:
    for stage in STAGES:
        title, detail = STEPS[stage.stage].words(stage)
        assert title
        assert detail


def test_every_step_is_of_a_kind_of_job_and_every_kind_is_made_of_steps() -> None:
    named = {name for spec in specs() for name in spec.steps}
    assert named | {"finetune", "merge"} == set(STEPS)


def test_no_module_of_the_jobs_names_a_step() -> None:
    texts = {
        (path.name, node.value)
        for path in Path(jobs.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
    }
    assert [place for place in texts if place[1] in STEPS] == []


def test_only_what_talks_to_the_hub_has_the_network() -> None:
    assert {name for name in STEPS if STEPS[name].online} == {"fetch", "adopt", "publish", "stream"}


def test_what_takes_a_models_memory_has_the_machine_to_itself() -> None:
    alone = {name for name in STEPS if STEPS[name].alone}
    assert {stage.stage for stage in STAGES if stage.makes or stage.gpu} | {"convert"} == alone


@pytest.mark.parametrize("name", ["fetch", "finetune", "quantize", "stream"])
def test_a_worker_imports_its_own_step_and_no_heavy_library_before_it_begins(name: str) -> None:
    told = (
        "import sys; from backend.jobs.job import read_spec; from backend.stages import STEPS; STEPS[sys.argv[1]];"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", told, name], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert not {"torch", "transformers", "peft", "trl", "gradio"} & loaded
    if name != "finetune":
        assert "backend.stages.finetune" not in loaded
    if name != "stream":
        assert "backend.stages.stream.stream" not in loaded
