"""vLLM: the fastest for what it serves, where it is installed and can run; each format says whether it serves it."""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backend.machine.hardware import gpus
from backend.model_folder import ADAPTER_CONFIG, CONFIG, GENERATION, TEMPLATE, settings_in
from backend.models.config import experts, longest_window, quantization, reads_pictures
from backend.models.towers import tower_package
from backend.serve.engine import HERE, CardLines, Engine, Install, Refusal, Served, Shown, sees
from backend.serve.engines.vllm_environment import install, interpreter, lacks, obstacle
from backend.serve.pictures import MOST, PIXELS

MOST_TOKENS = 8192
"""Of a conversation, without a GPU: it reserves memory for as many before it starts."""

CPU_CACHE = "1"  # GiB for the keys and values of a conversation

_BASE = "/base"
"""What an adapter's base model is called: no folder, by whose name the adapter is asked for, has a slash in its own."""

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Of adapters, that it makes room for."""

_PICTURES = [
    "--limit-mm-per-prompt", json.dumps({"image": MOST, "video": 0, "audio": 0}),
    "--allowed-media-domains", "no.address.invalid",  # the guard lets none through; this names none that exists
]  # fmt: skip

_KERNEL = re.compile(r"Using (\w*Kernel) for")
"""What it logs when it has chosen the kernel of quantized layers."""

_SLOW = ("ConchLinearKernel", "ExllamaLinearKernel", "TritonW4A16LinearKernel")
"""Kernels that take over where the fast ones do not suit a GPU or a shape; on a GPU they cost up to ten times."""


def _serves(served: Served) -> Refusal | None:
    name = served.folder.name
    if refusal := _unserved(served.config, f"'{name}'") or _unserved_here(served):
        return refusal
    for package in ("torchvision", tower_package(served.config)) if reads_pictures(served.config) else ():
        if package and lacks(package):
            return Refusal(f"vLLM needs {package} for a model that reads pictures, as '{name}' does, and has none here")
    if served.base and (reason := _unserved_part(served.folder)):
        return Refusal(f"vLLM serves no adapter with {reason}, as '{name}' has")
    if served.base and _experts_of(served.folder) and not gpus():
        return Refusal(f"Without a GPU vLLM serves no adapter of experts, as '{name}' is")
    return None


def _unserved(config: Mapping[str, Any], name: str) -> Refusal | None:
    """Return why vLLM serves no weights that are quantized as a config says, on any machine; None where it does."""
    from backend.quantize.formats import GPT_OSS, readers
    from backend.quantize.layouts import LAYOUTS

    known, method = readers(config), quantization(config).get("quant_method")
    reason = known["vllm"].refusal
    if not reason:
        return None
    if known["vllm"] is GPT_OSS:
        return Refusal(f"{reason}, and {name} is in {method}", "serve its original")
    packages = " and ".join(known["transformers"].packages)
    remedy = f"it loads in transformers with the packages {packages}" if method in LAYOUTS else ""
    return Refusal(f"{reason}, {_held(reason, name)}", remedy)


def _unserved_here(served: Served) -> Refusal | None:
    """Return why vLLM, which serves a model with a GPU, does not without one; None where there is one, or it does."""
    from backend.quantize.formats import readers

    reason = readers(served.config)["vllm-cpu"].refusal
    if gpus() or not reason:
        return None
    count = experts(served.config)
    name = f"'{served.folder.name}'"
    held = f"and {name} has {count} in a block" if count else _held(reason, name)
    return Refusal(f"{reason}, {held}", "chat with it on a machine with one, or with the model in nf4 here")


def _held(reason: str, name: str) -> str:
    """End the sentence that says why a model is not served: reasons name what is served alone, or what is not."""
    return f"and {name} is other" if reason.endswith("alone") else f"which {name} holds"


def _unserved_part(adapter: Path) -> str | None:
    """Name what an adapter has that vLLM does not serve."""
    config = settings_in(adapter, ADAPTER_CONFIG)
    rank = config.get("r")
    if config.get("peft_type", "LORA") != "LORA" or not isinstance(rank, int):
        return "other parts than LoRA's"
    if config.get("use_dora"):
        return "DoRA"
    if config.get("modules_to_save"):
        return "whole layers beside its own (modules_to_save)"
    if config.get("bias", "none") != "none":
        return "biases"
    if any(str(name).endswith(".up_proj") for name in _experts_of(adapter)):
        return "experts that have no gate"
    return "so high a rank" if rank > _RANKS[-1] else None


def _experts_of(adapter: Path) -> list[Any]:
    """Return the parameters of experts that an adapter is of, as PEFT names them."""
    found = settings_in(adapter, ADAPTER_CONFIG).get("target_parameters")
    return found if isinstance(found, list) else []


def _command(folder: Path, port: int, device: str, base: Path | None) -> list[str]:
    # By its module: vllm-cpu's launcher looks for a package named vllm.
    command = [str(interpreter()), "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--middleware", "backend.serve.guard.Guard", "--disable-uvicorn-access-log"]
    if device == "cpu":
        most = longest_window(settings_in(base or folder, CONFIG), MOST_TOKENS)
        command += ["--max-model-len", str(most)]
    if sees(folder, base):
        command += _PICTURES
    if base is None:
        return [*command, "--model", str(folder), "--served-model-name", folder.name]
    return [*command, "--model", str(base), "--served-model-name", _BASE, *_on_base(folder, folder.name, str(folder))]


def _on_base(adapter: Path, name: str, place: str) -> list[str]:
    """Return the arguments that serve an adapter beside its base model.

    Args:
        adapter: Its folder.
        name: What it is asked for by.
        place: Where its folder lies for vLLM.
    """
    rank = next(rank for rank in _RANKS if rank >= settings_in(adapter, ADAPTER_CONFIG)["r"])
    found = ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules"]
    if _experts_of(adapter):  # which PEFT holds in one matrix, and some of vLLM's classes one by one
        module = json.dumps({"name": name, "path": place, "is_3d_lora_weight": True})
        found += [module, "--enable-mixed-moe-lora-format"]
    else:
        found.append(f"{name}={place}")
    # what the adapter was trained with, and where its answers end, is not what its base has
    if (adapter / TEMPLATE).is_file():
        found += ["--chat-template", f"{place}/{TEMPLATE}"]
    if (adapter / GENERATION).is_file():
        found += ["--generation-config", place]
    return found


def _environment(sockets: Path) -> dict[str, str]:
    return {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": CPU_CACHE,
        "VLLM_MAX_IMAGE_PIXELS": str(PIXELS),
        # its processes talk over loopback: with no network it would look for an address of this machine in vain
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_RPC_BASE_PATH": str(sockets),  # where they meet; a killed one leaves its sockets
    }


def kernel(log: str) -> str:
    """Say which kernel a server has chosen for quantized layers, and where it is a slow one; nothing if it has none.

    Args:
        log: What the server has written.
    """
    found = _KERNEL.search(log)
    if found is None:
        return ""
    slow = ", which is slow: other bits or another group size may suit a faster one" if found[1] in _SLOW else ""
    return f"Its kernel is {found[1]}{slow}."


def _card(shown: Shown) -> CardLines | None:
    """Return the lines that serve a model on any machine that has vLLM."""
    link = "[vLLM](https://docs.vllm.ai)"
    if shown.config:
        served = _unserved(shown.config, shown.model_id) is None
        return CardLines(link, f"vllm serve {shown.model_id}") if served else None
    if shown.base_model is None or _unserved_part(shown.folder):
        return None
    name = "adapter" if shown.model_id == HERE else shown.model_id.split("/")[-1]
    place = HERE if shown.model_id == HERE else name
    lines = [] if shown.model_id == HERE else [f"hf download {shown.model_id} --local-dir {place}"]
    revision = f" --revision {shown.revision}" if shown.revision else ""
    lines.append(f"vllm serve {shown.base_model}{revision} {shlex.join(_on_base(shown.folder, name, place))}")
    note = "which holds the base model\nunquantized, so that some answers differ" if shown.base_was_quantized else ""
    return CardLines(link, "\n".join(lines), note)


ENGINE = Engine(
    name="vllm",
    title="vLLM",
    merit="the fastest for {}",
    overhead=4_000_000_000,  # torch, and the memory of conversations
    start_seconds=45.0,
    obstacle=obstacle,
    is_installed=lambda: interpreter() is not None,
    serves=_serves,
    unserved=_unserved,
    command=_command,
    environment=_environment,
    remark=kernel,
    install=Install(install, "run 'make vllm' once, which installs it", "3.4 GB on a CPU, once, in a few minutes"),
    card=_card,
    beside=_BASE,
)
