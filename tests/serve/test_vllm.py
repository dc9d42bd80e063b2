"""vLLM: what it serves here and what not, and real servers of what this studio writes."""

import json

import pytest

from backend.errors import HardwareError, SpecError
from backend.serve.engine import Served, Shown
from backend.serve.engines import ENGINES, choose, installable, transformers, vllm_environment
from backend.serve.engines import vllm as engine
from backend.serve.engines.vllm import kernel
from tests.support.pictures import make_gemma

GPTQ = {"quant_method": "gptq", "bits": 4, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "version": "gemm"}


def packed(form, activations=None, **weights):
    """Return a quantization_config of compressed-tensors."""
    group = {"format": form, "weights": weights, "input_activations": activations}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}


def folder_with(path, settings):
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": settings}))
    return path


@pytest.fixture
def vllm(monkeypatch):
    """Say what of vLLM is here."""

    def set_(obstacle=None, installed=True):
        here = {"obstacle": lambda: obstacle, "is_installed": lambda: installed}
        monkeypatch.setitem(ENGINES, "vllm", ENGINES["vllm"]._replace(**here))

    set_()
    return set_


@pytest.mark.parametrize("settings", [None, GPTQ, AWQ, {**GPTQ, "bits": 8}, {"quant_method": "compressed-tensors"}])
def test_vllm_serves_whatever_it_can(vllm, tmp_path, monkeypatch, settings):
    monkeypatch.setattr(engine, "gpus", lambda: ["a GPU"])
    assert choose(folder_with(tmp_path, settings))[0] == "vllm"
    assert choose(folder_with(tmp_path, settings), "vllm") == ("vllm", "chosen")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({**GPTQ, "bits": 8}, "GPTQ in 4 bits alone, and '.*' is other: chat with it on a machine with one"),
        (packed("pack-quantized", num_bits=3), "packed integers of 4 bits alone, and '.*' is other"),
        (packed("float-quantized", strategy="block"), "does not serve FP8 in blocks, which '.*' holds: chat"),
        (packed("nvfp4-pack-quantized", type="float"), "does not serve NVFP4, which"),
        (packed("mxfp4-pack-quantized", type="float"), "does not serve MXFP4, which"),
    ],
)
def test_without_a_gpu_vllm_serves_fewer_formats(vllm, tmp_path, monkeypatch, settings, words):
    monkeypatch.setattr(engine, "gpus", list)
    for served in (
        None,
        GPTQ,
        AWQ,
        packed("pack-quantized", num_bits=4),
        packed("int-quantized", {"num_bits": 8}),
        packed("float-quantized", {"num_bits": 8}),
    ):
        assert choose(folder_with(tmp_path, served))[0] == "vllm"
    with pytest.raises(HardwareError, match=f"Without a GPU, vLLM .*{words}"):
        choose(folder_with(tmp_path, settings), "vllm")
    monkeypatch.setattr(engine, "gpus", lambda: ["a GPU"])
    assert choose(tmp_path, "vllm")[0] == "vllm"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "bitsandbytes"}, "does not serve bitsandbytes"),
        ({**GPTQ, "bits": 3}, "4 and 8 bits"),
        ({**GPTQ, "sym": False}, "with sym"),
        ({**GPTQ, "desc_act": True}, "without desc_act"),
    ],
)
def test_what_vllm_does_not_serve_says_why(vllm, tmp_path, settings, words):
    with pytest.raises(HardwareError, match=words):
        choose(folder_with(tmp_path, settings), "vllm")


@pytest.mark.parametrize("settings", [GPTQ, AWQ])
def test_quantized_experts_need_a_gpu_and_those_of_gpt_oss_another_format(vllm, tmp_path, monkeypatch, settings):
    said = {"model_type": "qwen3_moe", "num_experts": 128}
    (tmp_path / "config.json").write_text(json.dumps(said | {"quantization_config": settings}))
    with pytest.raises(HardwareError, match=r"experts in \w+ with a GPU alone.* has 128 in a block: chat with it on"):
        choose(tmp_path, "vllm")
    monkeypatch.setattr(engine, "gpus", lambda: ["a GPU"])
    assert choose(tmp_path, "vllm")[0] == "vllm"
    oss = {"model_type": "gpt_oss", "quantization_config": settings}
    (tmp_path / "config.json").write_text(json.dumps(oss))
    with pytest.raises(HardwareError, match=r"gpt-oss in MXFP4 and 16 bit alone.*: serve its original"):
        choose(tmp_path, "vllm")
    assert ENGINES["vllm"].card(Shown(tmp_path, "me/x", oss)) is None
    monkeypatch.undo()
    assert ENGINES["vllm"].serves(Served(tmp_path, said)) is None  # in 16 bit


def test_without_vllm_the_way_to_it_is_named(vllm, tmp_path):
    vllm(installed=False)
    assert choose(folder_with(tmp_path, None))[0] == "transformers"
    with pytest.raises(HardwareError, match="run 'make vllm' once"):
        choose(folder_with(tmp_path, GPTQ))
    vllm(obstacle="This machine has neither.")
    with pytest.raises(HardwareError, match="This machine has neither"):
        choose(folder_with(tmp_path, AWQ))


def test_what_transformers_lacks_to_load_a_model_is_named(vllm, tmp_path, monkeypatch):
    there = {"gptqmodel"}
    monkeypatch.setattr(transformers, "find_spec", lambda name: name if name in there else None)
    with pytest.raises(HardwareError, match="To load gptq, transformers lacks optimum here: choose vllm"):
        choose(folder_with(tmp_path, GPTQ), "transformers")
    assert choose(folder_with(tmp_path, AWQ), "transformers")[0] == "transformers"
    with pytest.raises(HardwareError, match="lacks compressed-tensors here"):
        choose(folder_with(tmp_path, {"quant_method": "compressed-tensors"}), "transformers")
    vllm(installed=False)
    assert installable(folder_with(tmp_path, GPTQ))
    there.add("optimum")
    assert choose(folder_with(tmp_path, GPTQ))[0] == "transformers"
    assert not installable(folder_with(tmp_path, GPTQ))
    assert installable(folder_with(tmp_path, {"quant_method": "compressed-tensors"}))


def test_a_model_that_reads_pictures_goes_to_transformers_where_vllm_has_no_torchvision(vllm, tmp_path, monkeypatch):
    model, home = make_gemma(tmp_path / "gemma"), tmp_path / "vllm"
    monkeypatch.setattr(vllm_environment, "PLACE", home)
    assert choose(model)[0] == "vllm"  # which is not there yet, and may have it once it is
    home.mkdir()
    (home / "ready").touch()
    assert choose(model)[0] == "transformers"
    with pytest.raises(HardwareError, match=r"vLLM needs torchvision .* has none here: choose transformers"):
        choose(model, "vllm")
    (home / "lib" / "python3.11" / "site-packages" / "torchvision").mkdir(parents=True)
    assert choose(model)[0] == "vllm"


def test_what_vllm_shows_a_model_is_bounded_and_no_address_is_fetched(tmp_path):
    model = make_gemma(tmp_path / "gemma")
    command = ENGINES["vllm"].command(model, 7, "cpu", None)
    for flag, value in (
        ("--limit-mm-per-prompt", '{"image": 4, "video": 0, "audio": 0}'),
        ("--allowed-media-domains", "no.address.invalid"),
    ):
        assert command[command.index(flag) + 1] == value
    assert ENGINES["vllm"].environment(tmp_path)["VLLM_MAX_IMAGE_PIXELS"] == str(4096 * 4096)
    assert "--limit-mm-per-prompt" not in ENGINES["vllm"].command(folder_with(tmp_path, None), 7, "cpu", None)


def adapter_in(path, **more):
    (path / "adapter").mkdir()
    (path / "adapter" / "adapter_config.json").write_text(json.dumps({"r": 24, **more}))
    (path / "adapter" / "adapter_model.safetensors").touch()
    return path / "adapter"


def test_an_adapter_is_served_on_its_base_model(vllm, tmp_path):
    base, adapter = folder_with(tmp_path, None), adapter_in(tmp_path)
    assert choose(adapter, "auto", base)[0] == "vllm"
    command = ENGINES["vllm"].command(adapter, 7, "cpu", base)
    for flag, value in (("--model", str(base)), ("--lora-modules", f"adapter={adapter}"), ("--max-lora-rank", "32")):
        assert command[command.index(flag) + 1] == value
    name = command[command.index("--served-model-name") + 1]
    assert name == ENGINES["vllm"].beside
    assert "/" in name  # else an adapter's folder could have it, and be answered for by its base model
    with pytest.raises(SpecError, match="name the model that it was trained on"):
        choose(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(SpecError, match="pickled adapters are not loaded"):
        choose(adapter, "auto", base)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"r": 600}, "so high a rank"),
    ],
)
def test_an_adapter_that_vllm_does_not_serve_goes_to_transformers(vllm, tmp_path, more, words):
    base, adapter = folder_with(tmp_path, None), adapter_in(tmp_path, **more)
    assert choose(adapter, "auto", base)[0] == "transformers"
    with pytest.raises(HardwareError, match=words):
        choose(adapter, "vllm", base)


def test_the_kernel_is_named_and_a_slow_one_called_so():
    line = "INFO 11-22 [auto_gptq.py:352] Using {} for AutoGPTQLinearMethod"
    assert kernel(line.format("CPUWNA16LinearKernel")) == "Its kernel is CPUWNA16LinearKernel."
    assert "ConchLinearKernel, which is slow" in kernel(line.format("ConchLinearKernel"))
    assert kernel("INFO ready") == ""
