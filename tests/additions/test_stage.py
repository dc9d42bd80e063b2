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
from ui.sidebar import step_words
recipe = parse_recipe({"base_model": "demo", "stages": [{"stage": "quantize", "method": "nf4"}, {"stage": "count"}]})
print(recipe.steps, step_words(recipe.stages[1]))
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return grown(tmp_path_factory.mktemp("additions") / "house", MODULES, LINES)


def test_a_stage_that_was_added_is_a_step_of_a_recipe_and_is_said_in_words(house, tmp_path):
    said = python(house, "-c", SIDEBAR, data=tmp_path).splitlines()[-1]
    assert said == "('fetch', 'quantize', 'count') ('Count the tensors', 'at least 1')"


def test_a_stage_that_was_added_is_estimated(house, tiny_model, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=tiny_model, at_least=1))
    said = python(house, "-m", "backend", "estimate", str(tmp_path / "recipe.yaml"), "--json", data=tmp_path / "data")
    assert 1000 < json.loads(said)["seconds"] < 2000


def test_a_stage_that_was_added_runs_and_stands_in_the_recipe_of_the_result(house, tiny_model, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=tiny_model, at_least=2))
    command = ["-m", "backend", "run", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "made")]
    python(house, *command, data=tmp_path / "data")
    assert "stage: count\n  at_least: 2" in (tmp_path / "made" / "recipe.yaml").read_text()


def test_a_stage_that_was_added_ends_a_job_in_its_own_words(house, tiny_model, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=tiny_model, at_least=10_000))
    command = ["-m", "backend", "run", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "made")]
    with pytest.raises(AssertionError, match="fewer than 10000"):
        python(house, *command, data=tmp_path / "data")
