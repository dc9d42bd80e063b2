"""What this machine is: its name for artifacts, its memory for estimates; torch is not needed to ask."""

import ctypes
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Collection
from contextlib import suppress
from functools import cache
from pathlib import Path

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3


def hardware() -> str:
    """Name processor, cores, memory and GPUs, as a card shows it."""
    parts = [f"{processor()}, {os.cpu_count()} cores, {memory_bytes() / 2**30:.0f} GiB"]
    return " · ".join([*parts, *gpus()])


def memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or its container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        return min(total, int(text))
    return total


def available_bytes() -> int:
    """Return the memory that is free or can be freed: of the machine, or what a container's limit leaves of it."""
    meminfo = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.is_file() else None
    free = int(found[1]) * 1024 if found else memory_bytes()
    group = Path("/sys/fs/cgroup")
    if not (group / "memory.current").is_file():
        return free
    cached = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
    used = int((group / "memory.current").read_text()) - (int(cached[1]) if cached else 0)
    return min(free, memory_bytes() - used)


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process.

    Where Linux says it, of this program alone: rusage goes on from what the process had that started it.
    """
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Have peak_memory_bytes() count from now on, where Linux lets us."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def give_freed_memory_back() -> None:
    """Have glibc give back large pieces as they are freed; elsewhere nothing happens.

    By itself it raises, with each large piece that is freed, the size from which pieces lie apart: they end up among
    small ones, and holes stay. Measured where matrices come and go, a
    quantization to 3 bit: 794-905 became 742-816 MiB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for setting, value in ((_M_MMAP_THRESHOLD, 4 << 20), (_M_TRIM_THRESHOLD, 64 << 20), (_M_TOP_PAD, 64 << 20)):
            mallopt(setting, value)


def torch_threads() -> int:
    """Return the threads that torch would compute with, without importing it: OpenMP's number."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(asked) if asked.isdigit() and int(asked) > 0 else len(os.sched_getaffinity(0))


@cache
def gpus() -> tuple[str, ...]:
    """Name the NVIDIA GPUs that this process may use, with their memory."""
    tool, visible = shutil.which("nvidia-smi"), os.environ.get("CUDA_VISIBLE_DEVICES")
    if tool is None or visible == "":
        return ()
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    if visible and re.fullmatch(r"[0-9,]+|GPU-[\w,-]+", visible):
        query.append(f"--id={visible}")
    answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip()) if answer.returncode == 0 else ()


def gpu_bytes() -> int:
    """Return the memory of the smallest GPU, or 0 where there is none."""
    return min((int(found[1]) * 2**20 for name in gpus() if (found := re.search(r", (\d+) MiB$", name))), default=0)


def gpu_memory_bytes(processes: Collection[int]) -> int | None:
    """Return the memory of the GPUs that processes hold; None where NVIDIA's tool does not tell, as in many containers.

    Args:
        processes: Their numbers.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
    rows = re.findall(r"^(\d+), (\d+)$", answer.stdout, re.MULTILINE)
    held = [int(mebibytes) * 2**20 for number, mebibytes in rows if int(number) in processes]
    return sum(held) or None


@cache
def processor_flags() -> frozenset[str]:
    """Return what the processor can do, as Linux names it; nothing elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


@cache
def processor() -> str:
    """Name the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
