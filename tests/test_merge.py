"""Merged models, compared with float64 arithmetic, with PEFT's merge_and_unload and with bitsandbytes."""

import json
from contextlib import contextmanager

import torch
from safetensors.torch import load_file

from backend.merge import MergeOptions, merge, merged
from backend.options import parse
from backend.progress import silent
from backend.weights.checkpoint import Checkpoint
from backend.weights.output import Output

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TRUTH = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def options(*folders, **given):
    return parse(MergeOptions, {"adapters": [str(f) for f in folders], **given}, context={"paths": True})


@contextmanager
def opened(base, *adapters, **given):
    with Checkpoint.of(base) as weights, merged(weights, adapters, options(*adapters, **given), silent()) as result:
        yield result


def merge_to(output, base, *adapters, **given):
    """Merge into a folder and give its tensors and its config."""
    output.mkdir()
    with opened(base, *adapters, **given) as weights:
        merge(weights, Output(output), options(*adapters, **given), silent())
    return load_file(output / "model.safetensors"), json.loads((output / "config.json").read_text())


def peft_adapter(base, folder, seed=0, **config):
    """Save an adapter that PEFT made for a model, its matrices filled as after a training."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    model = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": LINEARS} | config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.05)
            elif "magnitude" in name:
                parameter.mul_(torch.rand(parameter.shape) * 0.2 + 0.9)
            elif parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.05)
    model.save_pretrained(folder)
    return folder


def peft_merged(base, *adapters):
    """Merge with PEFT itself."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    model = PeftModel.from_pretrained(model, adapters[0], adapter_name="0")
    for i, adapter in enumerate(adapters[1:], 1):
        model.load_adapter(adapter, str(i))
    return model.merge_and_unload(adapter_names=[str(i) for i in range(len(adapters))])
