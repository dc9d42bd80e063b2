"""Streaming models that ship in 8 or 4 bits: a weight and its scale may lie in different shards."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from backend.__main__ import main
from backend.models.inspection import inspect
from backend.recipes import parse_recipe
from backend.stages.estimate import estimate
from tests.support.encoded_models import encoded_model

TOKEN = "hf_" + "secret" * 6
STAGE = {"stage": "quantize", "method": "nf4", "max_shard_size": 100_000}


@pytest.fixture(scope="module")
def pair(tmp_path_factory, tiny_model):
    return encoded_model(tmp_path_factory.mktemp("apart"), "fp8 of tensors", tokenizer=tiny_model)


def in_shards(source, folder, apart, count=5):
    """Save a model in shards, its scales so many shards after their weights; from the last it goes on at the first."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards, weight_map = [{} for _ in range(count)], {}
    rows = sorted({name.rpartition(".")[0] for name in tensors})
    own = {row: number * count // len(rows) for number, row in enumerate(rows)}
    for name, tensor in tensors.items():
        number = (own[name.rpartition(".")[0]] + ("scale" in name) * apart) % count
        shards[number][name] = tensor
        weight_map[name] = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
    for number, shard in enumerate(shards):
        save_file(shard, folder / f"model-{number + 1:05d}-of-{count:05d}.safetensors", {"format": "pt"})
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("apart", [0, 2, 4])
def test_a_scale_in_another_shard_is_waited_for(apart, hub, pair, tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    source = in_shards(pair.encoded, tmp_path / "shards", apart)
    hub.add_model("me/eight", source, card="---\nlicense: mit\n---\n# Eight\n")
    hub.add_token(TOKEN, "me")
    here, there = tmp_path / "here", {"repo_id": "me/four", "insist": True}
    command = ["--method", "nf4", "--max-shard-size", str(STAGE["max_shard_size"]), "--output", str(here)]
    assert main(["quantize", str(source), *command]) == 0
    file = tmp_path / "recipe.yaml"
    recipe = {"base_model": "me/eight", "stages": [STAGE], "publish": there}
    file.write_text(json.dumps(recipe))
    needed = estimate(parse_recipe(recipe), inspect("me/eight"), tmp_path / "data")
    assert main(["run", str(file)]) == 0
    made = {name: content for name, content in hub.files("me/four").items() if name.startswith("model")}
    assert made.keys() == {path.name for path in here.glob("model*")}
    assert all((here / name).read_bytes() == content for name, content in made.items())
    assert {name: needed.files[name] for name in made} == {name: len(content) for name, content in made.items()}
    assert not list((tmp_path / "data").rglob("*.safetensors"))
