"""kill -9 of the app, of a server and of vLLM's engine: nothing of it lives, one sentence, the next start works."""

import shutil

import pytest

from backend.executors.local import marked, marker_prefix
from backend.serve.vllm_environment import interpreter
from backend.settings import Settings
from benchmarks.kills import Stage

pytestmark = pytest.mark.real
vllm = pytest.mark.skipif(interpreter() is None, reason="needs vLLM: make vllm")


@pytest.fixture
def play(tmp_path):
    """Give a stage of a victim, an engine and a model."""
    stages = []

    def make(victim, engine, folder):
        stages.append(Stage(victim, engine, folder, Settings(data=tmp_path, cancel_seconds=5), seed=0))
        return stages[-1]

    yield make
    for stage in stages:
        stage.holder.stop()
    assert not list(marked(marker_prefix(tmp_path)))


@pytest.fixture
def wide_model(tiny_model, tmp_path):
    """Give the tiny model with heads as wide as vLLM serves them on a CPU."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = shutil.copytree(tiny_model, tmp_path / "wide")
    config = LlamaConfig.from_pretrained(tiny_model, num_attention_heads=2, head_dim=32)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def clean(kill):
    return kill.gone_seconds is not None and kill.port_free


def test_a_killed_app_leaves_nothing_and_the_next_serves(play, tiny_model):
    stage = play("app", "transformers", tiny_model)
    starting, answering = stage.mid_start(), stage.mid_answer()
    assert clean(starting)
    assert clean(answering)
    assert stage.answers()
    assert starting.next_start
    assert answering.next_start


def test_a_killed_server_leaves_nothing_and_says_so_in_one_sentence(play, tiny_model):
    stage = play("server", "transformers", tiny_model)
    starting, answering = stage.mid_start(), stage.mid_answer()
    assert clean(starting)
    assert clean(answering)
    assert "ended while it started: it was killed" in starting.said
    assert answering.said.startswith("The server stopped while it answered")
    assert starting.next_start
    assert answering.next_start  # by itself


@vllm
def test_a_killed_engine_ends_its_server(play, wide_model):
    stage = play("engine", "vllm", wide_model)
    stage.holder.begin()
    stage.holder.wait()
    unused, answering = stage.kill("idle"), stage.mid_answer()
    assert clean(unused)
    assert clean(answering)
    assert answering.said.startswith("The server stopped while it answered")
    assert unused.next_start  # by itself
