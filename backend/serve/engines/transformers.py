"""`transformers serve`: whatever transformers loads, on every machine, at the speed of transformers.

What it does not load itself is unpacked to 16 bit by our own reader, as evaluate and check read it.
"""

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from backend.machine.hardware import gpus
from backend.model_folder import CONFIG, settings_in, weights_bytes
from backend.serve.engine import Engine, Refusal, Served


def missing_packages(config: Mapping[str, Any]) -> list[str]:
    """Return the packages that transformers needs to load a model, and that are not installed."""
    from backend.quantize.formats import readers

    needed = readers(config)["transformers"].packages
    return [package for package in needed if not find_spec(package.replace("-", "_"))]


def _serves(served: Served) -> Refusal | None:
    name, method = served.folder.name, served.method
    if served.settings.get("llm_int8_enable_fp32_cpu_offload") and not gpus():
        return Refusal(
            f"'{name}' was made with llm_int8_enable_fp32_cpu_offload and loads only where there is a GPU",
            "quantize again without it to chat on this machine",
        )
    if missing := missing_packages(served.config):
        return Refusal(f"To load {method}, transformers lacks {' and '.join(missing)} here")
    return None


def unpacks(config: Mapping[str, Any]) -> str:
    """Say that our own reader loads a model in place of transformers; nothing where that loads it."""
    from backend.quantize.formats import readers

    return "unpacked to 16 bit by Weightsmith" if readers(config)["transformers"].refusal else ""


def _weights(folder: Path) -> int:
    from backend.quantize.packed import unpacked_bytes

    return unpacked_bytes(folder) if unpacks(settings_in(folder, CONFIG)) else weights_bytes(folder)


def _command(folder: Path, port: int, device: str, base: Path | None) -> list[str]:
    command = [sys.executable, "-m", "backend.serve.engines.transformers_server", str(folder), str(port), device]
    return [*command, str(base)] if base else command


ENGINE = Engine(
    name="transformers",
    title="transformers",
    merit="it serves {} on every machine",
    overhead=1_000_000_000,  # torch
    start_seconds=15.0,
    serves=_serves,
    weights=_weights,
    unpacks=unpacks,
    command=_command,
)
