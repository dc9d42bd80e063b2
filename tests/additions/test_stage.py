"""A stage that is added is its option model, the module of its step, and a line where each is registered."""

import json
from pathlib import Path

import pytest

from tests.support.additions import grown, python

HERE = Path(__file__).parent / "stage"

MODULES = {"backend/count.py": HERE / "count_options.py", "backend/stages/count.py": HERE / "count.py"}
LINES = {
    "backend/recipes.py": {
        "from backend.credentials import": "from backend.count import CountOptions",
        "    FinetuneOptions | MergeOptions | QuantizeOptions": "    CountOptions |",
    },
    "backend/stages/__init__.py": {'    "check": "check:STEP",': '    "count": "count:STEP",'},
}

RECIPE = """
base_model: {model}
stages:
- {{stage: quantize, method: nf4}}
- {{stage: count, at_least: {at_least}}}
"""

SIDEBAR = """
from backend.recipes import parse_recipe
from ui.recipe.sidebar import step_words
recipe = parse_recipe({"base_model": "demo", "stages": [{"stage": "quantize", "method": "nf4"}, {"stage": "count"}]})
print(recipe.steps, step_words(recipe.stages[1]))
"""

FORM = """
import gradio as gr
from backend.jobs.supervisor import Supervisor
from backend.models.demo import demo_facts
from backend.serve.servers import Servers
from backend.settings import load_settings
from ui.page import build_parts
from ui.recipe.draft import parts
from ui.studio import Studio
settings = load_settings()
with gr.Blocks():
    bench = build_parts(Studio(settings, Supervisor(settings), Servers(settings)))
count = bench.recipe.others["count"]
field = count.form.fields["at_least"]
print(count.wanted.label, count.wanted.info, field.label, field.info, sep="; ")
given = {component: getattr(component, "value", None) for component in bench.inputs()}
given |= {bench.model.facts: demo_facts(), count.wanted: True, field: 3}
given[bench.recipe.others["check"].wanted] = True
recipe = bench.draft_recipe(given)
print(recipe.to_yaml())
filled = bench.recipe.fill(parts(recipe))
print("shown again:", filled[count.wanted], filled[field]["value"])
print("in another order:", parts(recipe.model_copy(update={"stages": (*recipe.stages[:2], *recipe.stages[:1:-1])})))
print("a fault:", bench.refresh(given | {field: -1})[field]["info"])
"""

CARD = """
import sys
from pathlib import Path
from backend.publish.card.card import build_card
print(build_card(Path(sys.argv[1]), "me/x"))
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return grown(tmp_path_factory.mktemp("additions") / "house", MODULES, LINES)


def test_a_stage_that_was_added_is_in_the_help(house, tmp_path):
    assert "Its stages: count, finetune, merge," in python(house, "-m", "backend", "run", "--help", data=tmp_path)


def test_a_stage_that_was_added_has_a_form_in_the_page(house, tmp_path):
    said = python(house, "-c", FORM, data=tmp_path)
    assert "Count the tensors; A result with fewer tensors than you expect is refused.; At least; Tensors that" in said
    assert "stage: count\n  at_least: 3" in said
    assert "shown again: True 3" in said
    assert "in another order: None" in said
    assert "a fault: Must be at least 0 (got -1)." in said


def test_a_stage_that_was_added_is_a_step_of_a_recipe_and_is_said_in_words(house, tmp_path):
    said = python(house, "-c", SIDEBAR, data=tmp_path).splitlines()[-1]
    assert said == "('fetch', 'quantize', 'count') ('Count the tensors', 'at least 1')"


def test_a_stage_that_was_added_is_estimated(house, tiny_model, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=tiny_model, at_least=1))
    said = python(house, "-m", "backend", "estimate", str(tmp_path / "recipe.yaml"), "--json", data=tmp_path / "data")
    assert 1000 < json.loads(said)["seconds"] < 2000


def test_a_stage_that_was_added_runs_and_stands_in_the_recipe_and_the_card_of_the_result(house, tiny_model, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=tiny_model, at_least=2))
    command = ["-m", "backend", "run", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "made")]
    python(house, *command, data=tmp_path / "data")
    assert "stage: count\n  at_least: 2" in (tmp_path / "made" / "recipe.yaml").read_text()
    assert "stage: count\n  at_least: 2" in python(house, "-c", CARD, str(tmp_path / "made"), data=tmp_path / "data")


def test_a_stage_that_was_added_ends_a_job_in_its_own_words(house, tiny_model, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=tiny_model, at_least=10_000))
    command = ["-m", "backend", "run", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "made")]
    with pytest.raises(AssertionError, match="fewer than 10000"):
        python(house, *command, data=tmp_path / "data")
