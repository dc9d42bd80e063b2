"""The talk in the page: what of it the model gets, where a retry begins, and what stands where vLLM is missing."""

import json
import shlex
import threading
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from backend.errors import HardwareError, SpecError
from backend.jobs.supervisor import Supervisor
from backend.serve.chat import Answer, usage
from backend.serve.engines import ENGINES, transformers
from backend.serve.installation import Installation
from backend.serve.server import Server
from backend.serve.servers import Servers
from backend.settings import Settings
from tests.support.pictures import data_url, encoded
from ui.chat.events import speed
from ui.chat.tab import build_chat_tab
from ui.chat.talk import NOT_KEPT, Asked, plain, told, typed, up_to
from ui.studio import Studio

TALK = [
    {"role": "user", "content": [{"type": "text", "text": "What is 2+2?"}]},
    {"role": "assistant", "content": "Two and two …", "metadata": {"title": "Reasoning"}},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And 3+3?"},
    {"role": "assistant", "content": "6"},
]


def test_what_was_thought_is_not_sent_again():
    assert plain(TALK) == [
        {"role": "user", "content": "What is 2+2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "And 3+3?"},
        {"role": "assistant", "content": "6"},
    ]


@pytest.mark.parametrize(("index", "before", "question"), [
    (0, 0, "What is 2+2?"), (2, 0, "What is 2+2?"), (3, 3, "And 3+3?"), (4, 3, "And 3+3?"), ((4, 0), 3, "And 3+3?"),
])  # fmt: skip
def test_a_retry_begins_at_the_question(index, before, question):
    assert up_to(TALK, index) == (TALK[:before], Asked(question, []))


def test_under_an_answer_stands_what_it_cost():
    answer = Answer(text="4", tokens=12, seconds_to_first_token=0.44, tokens_per_second=23.31, context=1512)
    assert "12 tokens · first after 0.4 s · 23.3 tokens/s · 1,512 tokens of context used" in speed(answer)


def test_the_lines_for_other_programs_are_ones_that_run():
    server = Server(folder=Path("/m/it's"), engine="vllm", base_url="http://127.0.0.1:9/v1", key="k-1")
    lines = usage(server)
    shell, python = lines.split("\n\n")
    words = shlex.split(shell.replace("\\\n", " "))
    assert words[:2] == ["curl", "http://127.0.0.1:9/v1/chat/completions"]
    assert json.loads(words[-1])["model"] == "it's"
    assert compile(python, "usage", "exec")
    assert "'k-1'" in python


@pytest.fixture
def studio(tmp_path):
    settings = Settings(data=tmp_path)
    return Studio(settings, Supervisor(settings), Servers(settings))


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A GPTQ result on a machine that vLLM could run on, and that has none."""
    here = {"obstacle": lambda: None, "is_installed": lambda: False}
    monkeypatch.setitem(ENGINES, "vllm", ENGINES["vllm"]._replace(**here))
    monkeypatch.setattr(transformers, "find_spec", lambda name: None)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    return SimpleNamespace(folder=tmp_path)


def test_where_vllm_is_missing_its_install_is_offered_and_watched(studio, packed, monkeypatch):
    with gr.Blocks():
        tab = build_chat_tab(studio)
    shown = tab.show_server(packed)
    assert (shown[tab.install]["visible"], shown[tab.load]["visible"]) == (True, False)
    assert "not installed yet" in shown[tab.status]
    heard = [studio.served("local")]
    go_on = threading.Event()

    def install(report, hardware):
        report.log("Collecting torch")
        go_on.wait(20)
        raise HardwareError("vLLM could not be installed: no space left.")

    vllm = ENGINES["vllm"]
    installation = Installation(vllm._replace(install=vllm.install._replace(run=install)))
    studio.installations["vllm"] = installation
    installation.begin()
    shown = tab.show_server(packed)
    assert not shown[tab.install]["visible"]
    heard.append(studio.served("local"))
    go_on.set()
    installation._thread.join()
    assert studio.served("local") not in heard
    assert heard[0] != heard[1]
    shown = tab.show_server(packed)
    assert shown[tab.install]["visible"]
    assert "no space left" in shown[tab.status]
    monkeypatch.setitem(ENGINES, "vllm", ENGINES["vllm"]._replace(is_installed=lambda: True))
    shown = tab.show_server(packed)
    assert (shown[tab.install]["visible"], shown[tab.load]["visible"]) == (False, True)


def test_where_others_use_the_page_too_nobody_installs_anything(studio, packed, monkeypatch):
    monkeypatch.setenv("SPACE_ID", "me/space")
    with gr.Blocks():
        tab = build_chat_tab(studio)
    assert not tab.show_server(packed)[tab.install]["visible"]


SEEN = [
    {"role": "user", "content": [{"type": "file", "file": {"path": "/a/red.png"}}, {"path": "/a/blue.png"}]},
    {"role": "user", "content": [{"type": "text", "text": "What is this?"}]},
    {"role": "assistant", "content": "A color."},
    {"role": "user", "content": "Which?"},
    {"role": "assistant", "content": "Red."},
]
BOTH = Asked("What is this?", ["/a/red.png", "/a/blue.png"])


@pytest.mark.parametrize("index", [0, (0, 1), 1, 2])
def test_a_retry_takes_the_pictures_of_the_question_along(index):
    assert up_to(SEEN, index) == ([], BOTH)
    assert up_to([*TALK, *SEEN], index[0] + 5 if isinstance(index, tuple) else index + 5) == (TALK, BOTH)
    assert up_to(SEEN, 4) == (SEEN[:3], Asked("Which?", []))


def test_what_is_kept_has_no_pictures_and_says_so():
    assert plain(SEEN) == [
        {"role": "user", "content": f"{NOT_KEPT}\n\nWhat is this?"},
        {"role": "assistant", "content": "A color."},
        {"role": "user", "content": "Which?"},
        {"role": "assistant", "content": "Red."},
    ]


def test_the_server_is_told_a_question_with_its_pictures_as_one_turn(tmp_path):
    file = tmp_path / "red.png"
    file.write_bytes(encoded())
    asked = Asked("What is this?", [str(file)])
    first, second = told([*asked.turns, {"role": "assistant", "content": "Red."}])
    assert [part["type"] for part in first["content"]] == ["image_url", "text"]
    assert first["content"][0]["image_url"]["url"] == data_url(encoded())
    assert (first["role"], second) == ("user", {"role": "assistant", "content": "Red."})
    file.unlink()
    with pytest.raises(SpecError, match=r"'red\.png' cannot be read as a picture .*: choose it again"):
        told(asked.turns)


def test_pictures_want_a_question():
    assert typed(None) is typed({"text": " ", "files": []}) is None
    assert typed({"text": " Hello? ", "files": []}) == Asked("Hello?", [])
    with pytest.raises(SpecError, match="Write what you want to know"):
        typed({"text": " ", "files": ["/a/red.png"]})
