"""The question "Where will it run?": what it changes on the Recipe tab, and what it does not."""

import html

import gradio as gr
import pytest

from backend.jobs.supervisor import Supervisor
from backend.models.demo import demo_facts
from backend.quantize import METHODS
from backend.recipes import parse_recipe
from backend.serve.servers import Servers
from backend.settings import Settings
from tests.ui.test_page import given, values
from ui.page import build_parts
from ui.recipe.tab import UNQUANTIZED
from ui.studio import Studio


@pytest.fixture
def bench(tmp_path):
    settings = Settings(data=tmp_path)
    with gr.Blocks():
        return build_parts(Studio(settings, Supervisor(settings), Servers(settings)))


def answered(bench, target, **more):
    return bench.recipe.answer(given(bench, target=target, **more), demo_facts())


def listed(bench, updates):
    return {value: text for text, value in updates[bench.recipe.method]["choices"]}


def test_an_answer_puts_first_what_runs_there_and_says_of_the_rest_why_not(bench):
    updates = answered(bench, "vllm-cpu")
    choices = listed(bench, updates)
    assert sorted(choices) == sorted(METHODS)
    refused = [name for name, text in choices.items() if "Does not run there" in text]
    assert {"nf4", "fp4", "int8"} < {*refused}
    assert list(choices)[-len(refused) :] == refused
    assert choices["nf4"].splitlines() == ["NF4 · 4 bit", "Does not run there: vLLM does not serve bitsandbytes."]
    first = updates[bench.recipe.method]["value"]
    assert first == next(iter(choices))
    assert updates[bench.recipe.groups[first]]["visible"]
    back = answered(bench, "unsure", method=first)
    assert list(listed(bench, back)) == list(METHODS)
    assert back[bench.recipe.method]["value"] == first


def test_what_does_not_run_there_can_be_chosen_all_the_same(bench):
    typed = given(bench, target="vllm-cpu") | values(answered(bench, "vllm-cpu"))
    typed |= {bench.recipe.method: "nf4"}
    typed |= values(bench.recipe.suit(typed, demo_facts()))
    assert [stage.method for stage in bench.draft_recipe(typed).quantizing] == ["nf4"]


def test_the_layout_is_one_that_the_target_loads(bench):
    typed = given(bench, target="llama.cpp", method="awq")
    typed |= values(bench.recipe.suit(typed, demo_facts()))
    assert [stage.layout for stage in bench.draft_recipe(typed).quantizing] == ["compressed-tensors"]
    untouched = bench.recipe.suit(given(bench, method="awq"), demo_facts())
    assert bench.recipe.forms["awq"].fields["layout"] not in untouched


def test_a_merged_model_may_stay_unquantized_wherever_it_runs(bench):
    updates = answered(bench, "vllm-cpu", merging=True, method=UNQUANTIZED)
    assert updates[bench.recipe.method]["value"] == UNQUANTIZED
    assert UNQUANTIZED in listed(bench, updates)
    switched = bench.recipe.switch(False, True, "gptq", "vllm-cpu")
    assert list(listed(bench, switched)) == [*listed(bench, answered(bench, "vllm-cpu")), UNQUANTIZED]


def test_the_answer_is_remembered_and_the_recipe_does_not_hold_it(bench):
    updates = bench.refresh(given(bench, target="sglang"))
    assert "sglang" not in html.unescape(updates[bench.recipe.text])
    remembered = updates[bench.remembered]
    again = bench.remember(remembered, None)
    assert again[bench.recipe.target]["value"] == "sglang"
    assert next(iter(listed(bench, again))) != "nf4"
    for unknown in ("a moon", ["x"], None):
        assert bench.remember(remembered | {"target": unknown}, None)[bench.recipe.target]["value"] == "unsure"


def test_a_pasted_recipe_leaves_the_answer_as_it_is(bench):
    recipe = parse_recipe({"base_model": "demo", "stages": [{"stage": "quantize", "method": "int8"}]})
    filled = bench.apply(given(bench, target="sglang", **{"recipe-yaml": recipe.to_yaml()}), None)
    assert filled[bench.recipe.target]["value"] == "sglang"
    assert filled[bench.recipe.method]["value"] == "int8"
