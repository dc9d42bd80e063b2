"""Models that ship in 8 or 4 bits go through every stage as the dense models that they stand for."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.__main__ import main
from backend.artifacts.sealing import open_artifact
from backend.errors import SpecError
from backend.models.inspection import inspect
from backend.models.loading import load_causal_lm
from backend.progress import silent
from backend.recipes import parse_recipe
from backend.stages.estimate import estimate
from tests.support.encoded_models import ENCODERS, encoded_model

TOKENS = torch.arange(2, 40)[None]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, tiny_model):
    """A model in each encoding, and the same in 16 bit."""
    made = tmp_path_factory.mktemp("encoded")

    def make(encoding):
        place = made / encoding.replace(" ", "-")
        (place).mkdir()
        return encoded_model(place, encoding, tokenizer=tiny_model)

    return {encoding: make(encoding) for encoding in ENCODERS}


@pytest.fixture(autouse=True)
def _data(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))


def logits(model):
    with torch.inference_mode():
        return model(TOKENS).logits.float()


def weights_in(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def assert_same_weights(one, other):
    found, expected = weights_in(one), weights_in(other)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("encoding", ENCODERS)
def test_a_model_is_looked_at_as_if_it_were_dense(encoding, pairs):
    found, dense = inspect(str(pairs[encoding].encoded)), inspect(str(pairs[encoding].dense))
    assert sorted(found.tensors, key=lambda t: t.name) == sorted(dense.tensors, key=lambda t: t.name)
    same = ("parameters", "dtype", "quant_method", "config", "layers", "loaded")
    assert [getattr(found, name) for name in same[:-1]] == [getattr(dense, name) for name in same[:-1]]
    assert found.quant_method is None
    assert found.encoding.startswith({"f": "FP8", "i": "4-bit integers", "m": "MXFP4"}[encoding[0]][:3]) or (
        encoding == "fp8 of rows" and found.encoding == "8-bit floats (compressed-tensors)"
    )
    assert found.size < dense.size
    assert dense.encoding is None
    assert found.loaded == sum(tensor.bytes for tensor in dense.tensors)


@pytest.mark.parametrize("method", ["nf4", "int8", "cast", "gptq", "awq"])
@pytest.mark.parametrize("encoding", ENCODERS)
def test_each_method_writes_what_it_writes_of_the_dense_model(encoding, method, pairs, tmp_path):
    if encoding == "mxfp4" and method in ("gptq", "awq"):
        pytest.skip("experts are not calibrated")
    calibration = ["--num-calibration-samples", "2", "--max-seq-length", "64"] if method in ("gptq", "awq") else []
    made = {}
    for name, folder in pairs[encoding]._asdict().items():
        made[name] = tmp_path / name
        command = ["quantize", str(folder), "--method", method, *calibration, "--output", str(made[name])]
        assert main(command) == 0
    assert_same_weights(made["encoded"], made["dense"])
    configs = [json.loads((folder / "config.json").read_text()) for folder in made.values()]
    assert configs[0] == configs[1]
    recipe = {"base_model": str(pairs[encoding].encoded), "stages": [open_artifact(made["encoded"]).options]}
    needed = estimate(parse_recipe(recipe, paths=True), inspect(str(pairs[encoding].encoded)), tmp_path / "data")
    there = {path.name: path.stat().st_size for path in made["encoded"].iterdir() if path.suffix == ".safetensors"}
    assert {name: needed.files[name] for name in there} == there
