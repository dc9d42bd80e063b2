"""The engines that can serve an artifact: how each is started, and which one suits.

An engine is one entry of ENGINES: a function from folder, port and device to the command that serves the folder.
"""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from backend.errors import HardwareError, SpecError
from backend.models.machine import gpus
from backend.strict_json import parse_object

MAX_CONFIG = 5_000_000  # bytes

EngineName = Literal["auto", "transformers"]

Command = Callable[[Path, int, str], list[str]]


def _transformers(folder: Path, port: int, device: str) -> list[str]:
    return [sys.executable, "-m", "backend.serve.transformers_server", str(folder), str(port), device]


ENGINES: dict[str, Command] = {"transformers": _transformers}


def choose(folder: Path, wanted: EngineName = "auto") -> tuple[str, str]:
    """Choose the engine for a folder.

    Args:
        folder: A model folder with config.json.
        wanted: "auto", or a key of ENGINES.

    Returns:
        The engine's name, and the reason in a few words.

    Raises:
        SpecError: It is no model folder.
        HardwareError: No engine can serve it on this machine.
    """
    try:
        config = parse_object((folder / "config.json").read_bytes(), "config.json", MAX_CONFIG)
    except OSError as e:
        raise SpecError(f"'{folder.name}' has no readable config.json: give the folder of a model.") from e
    settings = config.get("quantization_config") or {}
    if not isinstance(settings, dict):
        raise SpecError(f"The quantization_config of '{folder.name}' is damaged: make the model again.")
    if settings.get("llm_int8_enable_fp32_cpu_offload") and not gpus():
        raise HardwareError(
            f"'{folder.name}' was made with llm_int8_enable_fp32_cpu_offload and loads only where there is a GPU:"
            " quantize again without it to chat on this machine."
        )
    if settings.get("quant_method") in ("gptq", "awq") and not find_spec("gptqmodel"):
        raise HardwareError(
            f"'{folder.name}' holds {settings['quant_method']} weights, which transformers runs with the package"
            " gptqmodel alone: serve the folder with vLLM, or install gptqmodel."
        )
    if wanted != "auto":
        return wanted, "chosen"
    method = settings.get("quant_method", "16 bit")
    return "transformers", f"it serves {method} on every machine"
