"""The worked addition of docs/develop/add-a-method.md: a method and a layout, each one module and its line."""

import json
import re
from pathlib import Path

import pytest

from tests.support.additions import grown, python

HERE = Path(__file__).parent / "method"

MODULES = {"backend/quantize/toy.py": HERE / "toy.py", "backend/quantize/layouts/plain.py": HERE / "plain.py"}
LINES = {
    "backend/quantize/__init__.py": {
        "from backend.quantize.method import": "from backend.quantize import toy",
        '    "cast": cast.METHOD,': '    "toy": toy.METHOD,',
    },
    "backend/quantize/layouts/__init__.py": {
        "from backend.quantize.layouts.layout import": "from backend.quantize.layouts import plain",
        '    "gptq": gptq,': '    "plain": plain,',
    },
}

FORM = """
import json
import gradio as gr
from ui.recipe.tab import build_recipe_tab
with gr.Blocks():
    tab = build_recipe_tab()
print(json.dumps([[value for _, value in tab.method.choices], list(tab.forms["toy"].fields)]))
"""

RECIPE = """
from backend.recipes import parse_recipe, parse_yaml
stage = {"stage": "quantize", "method": "toy", "bits": 4, "calibration": "me/rows"}
recipe = parse_recipe({"base_model": "demo", "stages": [stage]})
assert parse_recipe(parse_yaml(recipe.to_yaml())) == recipe
print(recipe.to_yaml())
"""

READ = """
import sys
from pathlib import Path
from backend.progress import silent
from backend.publish.card.card import build_card
from backend.quantize.packed import load_unpacked
folder = Path(sys.argv[1])
print(build_card(folder, "me/toy"))
print("mean", load_unpacked(folder, silent()).model.layers[0].mlp.up_proj.weight.abs().mean().item())
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return grown(tmp_path_factory.mktemp("additions") / "house", MODULES, LINES)


def test_a_method_that_was_added_is_in_the_help(house, tmp_path):
    said = python(house, "-m", "backend", "quantize", "--help", data=tmp_path)
    assert "{nf4,fp4,int8,fp8,w8a16,w4a16,mxfp4,gptq,awq,w8a8,nvfp4,toy,cast}" in said
    assert re.search(r"--bits {2,3,4,5,6,7,8}\s[^-]*\[toy\]", said)


def test_a_method_that_was_added_is_in_the_form_of_the_page(house, tmp_path):
    choices, fields = json.loads(python(house, "-c", FORM, data=tmp_path).splitlines()[-1])
    assert "toy" in choices
    assert "bits" in fields
    assert "calibration" not in fields  # the Data tab asks for it


def test_a_method_that_was_added_is_in_recipes(house, tmp_path):
    assert "method: toy" in python(house, "-c", RECIPE, data=tmp_path)


@pytest.mark.real
def test_a_method_that_was_added_is_estimated_made_read_and_described(house, tiny_model, tmp_path):
    chosen = ["--method", "toy", "--group-size", "32", "--num-calibration-samples", "4", "--max-seq-length", "32"]
    command = ["-m", "backend", "estimate", str(tiny_model), *chosen, "--json"]
    expected = json.loads(python(house, *command, data=tmp_path / "data"))
    made = tmp_path / "made"
    command = ["-m", "backend", "quantize", str(tiny_model), *chosen, "--output", str(made)]
    python(house, *command, data=tmp_path / "data")
    assert expected["output_bytes"] == pytest.approx(sum(f.stat().st_size for f in made.iterdir()), rel=0.01)
    said = python(house, "-c", READ, str(made), data=tmp_path / "data")
    assert "pip install transformers torch accelerate toyquant" in said
    assert "quantized to 8 bits (toy, in the format of plain)" in said
    assert "vLLM does not serve the layout plain" in said
    assert "vllm serve" not in said
    mean = float(said.splitlines()[-1].split()[1])
    from safetensors.torch import load_file

    source = load_file(tiny_model / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert mean == pytest.approx(source.float().abs().mean().item(), rel=0.1)
