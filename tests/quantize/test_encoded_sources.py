"""Models that ship in 8 or 4 bits go through every stage as the dense models that they stand for."""

import json
import shutil

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
from tests.support.adapters import TINY, save_adapter
from tests.support.encoded_models import ENCODERS, encoded_model
from tests.support.training import train

TOKENS = torch.arange(2, 40)[None]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, tiny_model):
    """A model in each encoding, and the same in 16 bit."""
    made = tmp_path_factory.mktemp("encoded")

    def make(encoding):
        place = made / encoding.replace(" ", "-")
        place.mkdir()
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


WORDS = {
    "fp8 in blocks": "FP8 in blocks of 128 × 128",
    "fp8 of tensors": "FP8",
    "fp8 of rows": "8-bit floats (compressed-tensors)",
    "int4 in groups": "4-bit integers (compressed-tensors)",
    "int3 in groups": "3-bit integers (compressed-tensors)",
    "int8 of rows": "8-bit integers (compressed-tensors)",
    "fp8 in compressed blocks": "8-bit floats (compressed-tensors)",
    "mxfp4 of rows": "MXFP4 (compressed-tensors)",
    "nvfp4 of rows": "NVFP4 (compressed-tensors)",
    "mxfp4": "MXFP4",
}


@pytest.mark.parametrize("encoding", ENCODERS)
def test_a_model_is_looked_at_as_if_it_were_dense(encoding, pairs):
    found, dense = (inspect(str(folder)) for folder in pairs[encoding])
    assert {t.name: t for t in found.tensors} == {t.name: t for t in dense.tensors}
    same = ("parameters", "dtype", "config", "layers", "quant_method")
    assert [getattr(found, name) for name in same] == [getattr(dense, name) for name in same]
    assert (found.encoding, dense.encoding) == (WORDS[encoding], None)
    assert found.loaded == sum(tensor.bytes for tensor in dense.tensors)
    assert found.size < dense.size


CALIBRATED = (("fp8 in blocks", "gptq"), ("int4 in groups", "awq"))


def methods():
    """Each method for each encoding, but for those that are calibrated."""
    for encoding in ENCODERS:
        yield from ((encoding, method) for method in ("nf4", "int8", "cast"))
    yield from (pytest.param(*pair, marks=pytest.mark.real) for pair in CALIBRATED)


@pytest.mark.parametrize(("encoding", "method"), methods())
def test_each_method_writes_what_it_writes_of_the_dense_model(encoding, method, pairs, tmp_path):
    calibration = ["--num-calibration-samples", "2", "--max-seq-length", "64"] if method in ("gptq", "awq") else []
    made = []
    for folder in pairs[encoding]:
        made.append(tmp_path / folder.name)
        command = ["quantize", str(folder), "--method", method, *calibration, "--output", str(made[-1])]
        assert main(command) == 0
    assert_same_weights(*made)
    configs = [json.loads((folder / "config.json").read_text()) for folder in made]
    assert configs[0] == configs[1]
    source = str(pairs[encoding].encoded)
    recipe = parse_recipe({"base_model": source, "stages": [open_artifact(made[0]).options]}, paths=True)
    needed = estimate(recipe, inspect(source), tmp_path / "data")
    there = {path.name: path.stat().st_size for path in made[0].iterdir() if path.name != "artifact.json"}
    assert {name: needed.files[name] for name in there} == there


@pytest.mark.parametrize("encoding", ["fp8 in blocks", "fp8 of tensors", "mxfp4"])
def test_logits_are_those_of_transformers_own_decoder(encoding, pairs, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = pairs[encoding].encoded
    expected = logits(AutoModelForCausalLM.from_pretrained(folder, dtype="auto"))
    assert main(["quantize", str(folder), "--method", "cast", "--output", str(tmp_path / "cast")]) == 0
    assert torch.equal(logits(load_causal_lm(folder, silent())), expected)
    assert torch.equal(logits(load_causal_lm(tmp_path / "cast", silent())), expected)


@pytest.mark.parametrize("encoding", ENCODERS)
def test_a_model_is_loaded_as_the_dense_one_and_its_name_stays(encoding, pairs):
    model, expected = (load_causal_lm(folder, silent()) for folder in pairs[encoding])
    assert torch.equal(logits(model), logits(expected))
    assert model.name_or_path == str(pairs[encoding].encoded)
    assert "quantization_config" not in model.config.to_dict()


def test_bitsandbytes_quantizes_what_is_decoded(pairs, tmp_path):
    from transformers import BitsAndBytesConfig

    folder = pairs["fp8 in blocks"].encoded
    four = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    assert main(["quantize", str(folder), "--method", "nf4", "--output", str(tmp_path / "nf4")]) == 0
    found = load_causal_lm(folder, silent(), dtype=torch.bfloat16, quantization_config=four)
    assert torch.equal(logits(found), logits(load_causal_lm(tmp_path / "nf4", silent())))


@pytest.mark.parametrize("encoding", ["fp8 of tensors", "int4 in groups"])
def test_an_adapter_is_merged_into_what_is_decoded(encoding, pairs, tmp_path):
    pair = pairs[encoding]
    adapter = save_adapter(pair.dense, tmp_path / "adapter", target_modules=TINY)
    for into in ("original", "nf4"):
        made = []
        for base in pair:
            made.append(tmp_path / f"{into}-{base.name}")
            command = ["merge", str(adapter), "--base", str(base), "--merge-into", into, "--output", str(made[-1])]
            assert main([*command, "--other-base"]) == 0
        assert_same_weights(*made)


@pytest.mark.real
def test_a_result_is_measured_against_what_is_decoded(pairs, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("Weights that ship in eight bits are read as sixteen. " * 20)
    base, made = pairs["fp8 in blocks"].encoded, tmp_path / "cast"
    assert main(["quantize", str(base), "--method", "cast", "--output", str(made)]) == 0
    command = ["evaluate", str(made), "--reference", str(base), "--text", str(text), "--no-answers", "--json"]
    capsys.readouterr()
    assert main([*command, "--max-seq-length", "64", "--num-samples", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["kl_mean"] < 1e-9


@pytest.mark.real
def test_an_adapter_is_trained_on_what_is_decoded(pairs, tmp_path):
    losses = [train(folder, tmp_path / folder.name / "o", max_steps=2).train_loss for folder in pairs["fp8 of rows"]]
    assert losses[0] == losses[1]
    settings = json.loads((tmp_path / "encoded" / "o" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(pairs["fp8 of rows"].encoded)


@pytest.mark.parametrize("byte", [0x7F, 0xFF])
@pytest.mark.parametrize("method", ["nf4", "cast"])
def test_a_number_that_is_none_is_named_with_its_tensor(method, byte, pairs, tmp_path, capsys):
    folder = shutil.copytree(pairs["fp8 in blocks"].encoded, tmp_path / "damaged")
    stored = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    stored[name].view(torch.uint8)[3, 5] = byte
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    assert main(["quantize", str(folder), "--method", method, "--output", str(tmp_path / "made")]) != 0
    words = f"'{name}' holds numbers that are not finite"
    assert words in capsys.readouterr().err
    with pytest.raises(SpecError, match=words):
        load_causal_lm(folder, silent())


def test_a_scale_that_is_missing_is_named_before_anything_is_made(pairs, tmp_path):
    folder = shutil.copytree(pairs["fp8 in blocks"].encoded, tmp_path / "damaged")
    stored = load_file(folder / "model.safetensors")
    del stored["model.layers.1.mlp.down_proj.weight_scale_inv"]
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        SpecError, match=r"'model.layers.1.mlp.down_proj.weight' is a matrix in 8 bits without its scale"
    ):
        inspect(str(folder))
