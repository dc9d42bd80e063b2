"""What sees each tensor alone, of every family that people pick: what transformers makes of it, with pictures too."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.errors import SpecError
from backend.model_folder import read_config
from backend.models.inspection import inspect
from backend.models.loading import load_causal_lm
from backend.models.rewriting import config_json
from backend.progress import silent
from backend.quantize import METHODS
from backend.quantize.calibrated.filling import Filler
from backend.quantize.packed import load
from backend.weights.checkpoint import Checkpoint
from backend.weights.output import Output
from tests.support.family_models import FAMILIES, REFUSED, inputs, make

pytestmark = pytest.mark.real

IDS = torch.arange(2, 34)[None]
WHOLE = {"nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}}
WHOLE |= {"int8": {"load_in_8bit": True}}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    return {name: make(name, folder / name.replace(" ", "_")) for name in FAMILIES}


def logits(model, given):
    cast = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in given.items()}
    with torch.inference_mode():
        return model(**cast).logits.float()


def quantized(folder, method, output):
    options = METHODS[method].Options()
    output.mkdir()
    with Checkpoint.of(folder) as weights:
        METHODS[method].quantize(weights, Output(output), options, silent())
    return output


def one_by_one(folder, output, monkeypatch):
    """Write a model with its experts one by one, and have transformers build it so while it quantizes it itself."""
    from transformers.quantizers.base import HfQuantizer

    shutil.copytree(folder, output)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if ".experts." in name]:
        base, _, last = name.rpartition(".")
        parts = {"gate_up_proj": ("gate_proj", "up_proj")}.get(last, (last,))
        for expert, whole in enumerate(tensors.pop(name)):
            halves = zip(parts, whole.chunk(len(parts), -1), strict=True)
            tensors |= {f"{base}.{expert}.{part}.weight": half.T.contiguous() for part, half in halves}
    save_file(tensors, output / "model.safetensors", {"format": "pt"})
    prepare = HfQuantizer.preprocess_model

    def prepared(self, model, **kwargs):
        self._convert_model_for_quantization(model)
        return prepare(self, model, **kwargs)

    monkeypatch.setattr(HfQuantizer, "preprocess_model", prepared)
    return output


@pytest.mark.parametrize("method", ["nf4", "int8", "cast"])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_result_is_what_transformers_makes_of_the_model(name, method, models, tmp_path, monkeypatch):
    from transformers import BitsAndBytesConfig

    folder, options = models[name], METHODS[method].Options()
    facts = inspect(str(folder))
    options.check(facts)
    made = quantized(folder, method, tmp_path / method)
    planned = options.plan(facts.tensors, facts.config).files
    planned["config.json"] = len(config_json(facts.config, facts.tensors, options.config(facts.tensors, facts.config)))
    assert {path.name: path.stat().st_size for path in made.iterdir()} == planned
    settings = read_config(made).get("quantization_config", {})
    skipped = {"llm_int8_skip_modules": settings.get("llm_int8_skip_modules"), "bnb_4bit_compute_dtype": torch.bfloat16}
    how = {"quantization_config": BitsAndBytesConfig(**WHOLE[method], **skipped)} if method in WHOLE else {}
    if name == "Llama 4" and how:
        folder = one_by_one(folder, tmp_path / "one_by_one", monkeypatch)
    theirs, ours = load_causal_lm(folder, silent(), **how), load_causal_lm(made, silent())
    assert type(theirs) is type(ours)
    given = inputs(name, IDS)
    assert torch.equal(logits(ours, given), logits(theirs, given))


FORMATS = {"fp8": 0.4, "mxfp4": 0.8}
"""The share of logits that may change: tiny random models are further off than trained ones; any others have 1.4."""


@pytest.mark.parametrize("method", FORMATS)
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_result_in_codes_with_scales_answers_nearly_as_the_model_does(name, method, models, tmp_path):
    folder, options = models[name], METHODS[method].Options()
    facts = inspect(str(folder))
    if method in REFUSED.get(name, ()):
        with pytest.raises(SpecError, match="choose nf4 or gptq"):
            options.check(facts)
        return
    options.check(facts)
    made = quantized(folder, method, tmp_path / method)
    planned = options.plan(facts.tensors, facts.config).files
    assert {path.name: path.stat().st_size for path in made.glob("*.safetensors")} == planned
    theirs, ours = load_causal_lm(folder, silent()), load(made, silent())
    assert type(theirs) is type(ours)
    given = inputs(name, IDS)
    before, after = logits(theirs, given), logits(ours, given)
    assert 0 < (after - before).norm() < FORMATS[method] * before.norm()


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_readers_of_compressed_tensors_take_for_quantized_what_is(name, models, tmp_path):
    from compressed_tensors.utils import is_match

    if "fp8" in REFUSED.get(name, ()):
        return
    made = quantized(models[name], "fp8", tmp_path / "fp8")
    model, ignored = load_causal_lm(models[name], silent()), read_config(made)["quantization_config"]["ignore"]
    with Checkpoint.of(made) as weights:
        scaled = [t.name.removesuffix("_scale") for t in weights.tensors if t.name.endswith(".weight_scale")]
    places = Filler(model, scaled).places.values()
    found = {place.parameter.removesuffix(".weight") for place in places if place.expert is None}
    linear = {module_name for module_name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    said = {
        module_name
        for module_name in linear
        if is_match(module_name, model.get_submodule(module_name), "Linear", ignored)
    }
    assert said == found & linear
