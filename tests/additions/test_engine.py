"""The worked addition of docs/develop/add-an-engine.md: an engine is one module and its line."""

import json
from pathlib import Path

import pytest

from tests.support.additions import grown, python

MODULES = {"backend/serve/engines/toy.py": Path(__file__).parent / "engine" / "toy.py"}
LINES = {
    "backend/serve/engines/__init__.py": {
        "from backend.serve.engines import transformers, vllm": "from backend.serve.engines import toy",
        '}\n"""In the order': '    "toy": toy.ENGINE,',
    },
}

PAGE = """
from pathlib import Path
import gradio as gr
from backend.jobs.supervisor import Supervisor
from backend.serve.servers import Servers
from backend.settings import load_settings
from ui.chat_tab import build_chat_tab
from ui.studio import Studio
settings = load_settings()
with gr.Blocks():
    tab = build_chat_tab(Studio(settings, Supervisor(settings), Servers(settings)))
print(tab.engine.choices)
"""

CARD = """
import sys
from pathlib import Path
from backend.publish.card.card import build_card
print(build_card(Path(sys.argv[1]), "me/x"))
"""

REFUSED = """
import sys
from pathlib import Path
from backend.errors import HardwareError
from backend.serve.engines import choose
try:
    choose(Path(sys.argv[1]), "toy")
except HardwareError as e:
    print(e)
"""

ESTIMATE = """
import sys
from pathlib import Path
from backend.models.inspection import inspect
from backend.recipes import parse_recipe
from backend.stages.estimate import estimate
stages = [{"stage": "quantize", "method": "nf4"}, {"stage": "check", "engine": "toy"}]
facts = inspect(sys.argv[1], None, None)
recipe = parse_recipe({"base_model": sys.argv[1], "stages": stages}, paths=True)
needed = estimate(recipe, facts, Path(sys.argv[2]))
print(needed.memory["check"] - facts.size)
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return grown(tmp_path_factory.mktemp("additions") / "house", MODULES, LINES)


@pytest.mark.parametrize("command", ["serve", "chat", "check"])
def test_an_engine_that_was_added_is_in_the_help(house, tmp_path, command):
    assert "{auto,vllm,transformers,toy}" in python(house, "-m", "backend", command, "--help", data=tmp_path)


def test_an_engine_that_was_added_is_in_the_choice_of_the_page(house, tmp_path):
    assert "('Toy', 'toy')" in python(house, "-c", PAGE, data=tmp_path)


@pytest.mark.real
def test_an_engine_that_was_added_answers(house, tiny_model, tmp_path):
    command = ["-m", "backend", "chat", str(tiny_model), "--prompt", "Hello", "--engine", "toy"]
    answer = json.loads(python(house, *command, "--json", data=tmp_path))
    assert (answer["text"], answer["tokens"]) == ("Toys say this.", 4)


def test_what_an_engine_that_was_added_does_not_serve_is_said_by_it(house, tiny_model, tmp_path):
    folder = tmp_path / "packed"
    folder.mkdir()
    config = json.loads((tiny_model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    said = python(house, "-c", REFUSED, str(folder), data=tmp_path)
    assert said == "Toy does not serve bitsandbytes, which 'packed' holds: choose transformers.\n"


def test_an_engine_that_was_added_is_named_by_cards(house, make_artifact, tmp_path):
    card = python(house, "-c", CARD, str(make_artifact()), data=tmp_path)
    assert "endpoint with [Toy](https://toy.example)" in card
    assert "toy serve me/x" in card


def test_a_check_in_an_engine_that_was_added_is_estimated_by_what_that_needs(house, tiny_model, tmp_path):
    assert python(house, "-c", ESTIMATE, str(tiny_model), str(tmp_path), data=tmp_path) == "50000000\n"
