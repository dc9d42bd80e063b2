"""Adapters as PEFT writes them, and models that they are merged into."""

import json
from contextlib import contextmanager

import torch
from safetensors.torch import load_file, save_file

from backend.merge.merging import merge, merged
from backend.merge.options import MergeOptions
from backend.options import parse
from backend.progress import silent
from backend.weights.checkpoint import Checkpoint
from backend.weights.output import Output

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


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


def save_model(folder, dtype=torch.bfloat16, kind="llama", max_shard_size="5GB", **config):
    """Save a small random model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "llama": {
            "vocab_size": 200, "hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2,
        },
        "gpt2": {"vocab_size": 200, "n_positions": 32, "n_embd": 48, "n_layer": 2, "n_head": 4},
    }  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes[kind] | config), dtype=dtype)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def save_adapter(base, folder, seed=0, **config):
    """Save an adapter that PEFT made for a model, with numbers in it as after a training."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    model = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": LINEARS} | config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(torch.rand(parameter.shape) * 0.2 + 0.9)
            elif "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.03)
            elif parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.05)
    model.save_pretrained(folder)
    return folder


def taught(model):
    """Fill the adapter of one of PEFT's models with numbers, as a training would."""
    torch.manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.copy_(torch.randn(parameter.shape) * 0.1)


def with_peft(base, *adapters):
    """Load adapters with PEFT itself."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    model = PeftModel.from_pretrained(model, adapters[0], adapter_name="0")
    for i, adapter in enumerate(adapters[1:], 1):
        model.load_adapter(adapter, str(i))
    return model


def edited(adapter, **settings):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | settings))
    return adapter


def resaved(adapter, change):
    weights = change(load_file(adapter / "adapter_model.safetensors"))
    save_file(weights, adapter / "adapter_model.safetensors")


TINY = ["q_proj", "down_proj"]
