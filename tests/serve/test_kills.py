"""kill -9 of the app, of a server and of vLLM's engine: nothing of it lives, one sentence, the next start works."""

import shutil
import string
import tempfile
from pathlib import Path

import pytest

from backend.processes.marks import marked, marker_prefix
from backend.serve.engines.vllm_environment import interpreter
from backend.settings import Settings
from benchmarks.kills import LIMIT, Stage, until

pytestmark = pytest.mark.real
vllm = pytest.mark.skipif(interpreter() is None, reason="needs vLLM: make vllm")


@pytest.fixture
def play(tmp_path):
    """Yield a stage of a victim, an engine and a model."""
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
    """Return the tiny model with heads as wide as vLLM serves them on a CPU, whose answers are letters without an end.

    One that repeats a byte which is no text would say nothing until it has ended, and nobody could kill it before.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = shutil.copytree(tiny_model, tmp_path / "wide")
    config = LlamaConfig.from_pretrained(tiny_model, num_attention_heads=2, head_dim=32, max_position_embeddings=4096)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    letters = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(list(string.ascii_letters))
    others = [token for token in range(config.vocab_size) if token not in letters]
    with torch.no_grad():
        model.lm_head.weight[others] = 0  # some letter has a larger logit
    model.save_pretrained(folder)
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


@pytest.fixture
def temporary(monkeypatch):
    """Yield a temporary folder of one's own with a short name: a socket's path has 107 characters at most."""
    with tempfile.TemporaryDirectory() as place:
        monkeypatch.setattr(tempfile, "tempdir", place)
        yield Path(place)


@vllm
def test_a_killed_engine_ends_its_server(play, wide_model, temporary):
    stage = play("engine", "vllm", wide_model)
    stage.holder.begin()
    stage.holder.wait()
    assert any(path.is_socket() for path in temporary.glob("*/*"))
    unused, answering = stage.kill("idle"), stage.mid_answer()
    assert clean(unused)
    assert clean(answering)
    assert answering.said.startswith("The server stopped while it answered")
    assert unused.next_start  # by itself
    stage.holder.stop()
    assert until(lambda: not any(temporary.iterdir()), LIMIT) is not None
