"""A model whose tower is built with a package that is not here: it keeps its class and its files, and reads text."""

import json

import pytest

from backend.models.loading import load_causal_lm
from backend.progress import silent
from backend.publish.card.usage import loading
from backend.serve.engine import Served, sees
from backend.serve.engines import vllm, vllm_environment
from tests.support.family_models import make

CONFIG = {
    "model_type": "gemma3n", "architectures": ["Gemma3nForConditionalGeneration"], "text_config": {},
    "vision_config": {"model_type": "gemma3n_vision"},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    return tmp_path


def test_it_keeps_its_class_and_is_loaded_whole_but_for_the_tower(tmp_path):
    model = load_causal_lm(make("Gemma 3n", tmp_path / "model"), silent())
    assert type(model).__name__ == "Gemma3nForConditionalGeneration"
    assert not list(model.model.vision_tower.parameters())
    assert list(model.model.audio_tower.parameters())


def test_it_takes_pictures_only_where_the_package_is(folder, monkeypatch):
    assert not sees(folder)
    monkeypatch.setattr("backend.serve.engine.find_spec", lambda name: name == "timm")
    assert sees(folder)


def test_vllm_refuses_it_where_its_own_python_lacks_the_package(folder, monkeypatch):
    place = folder / "vllm"
    (place / "lib/python3.12/site-packages/torchvision").mkdir(parents=True)
    (place / "ready").touch()
    monkeypatch.setattr(vllm_environment, "PLACE", place)
    monkeypatch.setattr(vllm, "gpus", lambda: ["a GPU"])
    served = Served(folder, CONFIG)
    assert "vLLM needs timm for a model that reads pictures" in vllm.ENGINE.serves(served).reason
    (place / "lib/python3.12/site-packages/timm").mkdir()
    assert vllm.ENGINE.serves(served) is None


def test_a_card_names_the_package(folder):
    assert loading(folder, "me/x", CONFIG, None, None)["packages"].endswith(" timm")
