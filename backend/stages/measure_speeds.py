"""Measuring how fast this machine is: the real code on a model of one layer, in the data folder.

`python -m backend.stages.measure_speeds DATA STARTED`; STARTED is the monotonic clock's time when it was started.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import backend.stages.quantize  # noqa: F401 - what a worker has imported when its stage begins
from backend.disk import scratch, sha256
from backend.machine.hardware import peak_memory_bytes
from backend.machine.speeds import Speeds, machine, write_speeds
from backend.processes.child import NICENESS
from backend.progress import silent
from backend.quantize import METHODS
from backend.weights.checkpoint import Checkpoint
from backend.weights.output import Output
from backend.weights.writer import Slot, Writer, into_shards

SIDE = 4096  # of the layer: 32 MiB, more than most caches
RUNS = 3
WARM = 128  # of the layer that the loops are loaded with


def main(data: Path, started: float) -> None:
    """Measure, and write the speeds."""
    begun = time.monotonic() - started
    os.nice(NICENESS)  # what else runs on the machine slows it as much as a worker
    with scratch(data) as place:
        small, large = _model(place / "small", WARM), _model(place / "large", SIDE)
        methods = [name for name, method in METHODS.items() if method.Options.streams]
        for method in methods:
            _run(method, small)
        memory = peak_memory_bytes()
        size = (large / "model.safetensors").stat().st_size
        measured = Speeds(
            machine=machine(),
            start_seconds=begun,
            worker_bytes=memory,
            methods={method: _rate(method, large) for method in methods},
            hash=size / _hashing(large),
            write=size / _syncing(large),
        )
    write_speeds(data, measured)


def _model(folder: Path, side: int) -> Path:
    """Write a model of one layer."""
    slot = Slot("model.layers.0.mlp.up_proj.weight", "BF16", (side, side))
    folder.mkdir()
    shard = into_shards([[slot]])[0]
    writer = Writer(Output(folder), shard)
    row = (
        np.sin(np.arange(side, dtype=np.float32)).view(np.uint16)[1::2].copy()
    )  # the upper half of a float32: a bfloat16
    for first in range(side):
        writer.write(slot.name, row, 2 * side * first)
    writer.close()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "bfloat16"}), encoding="utf-8")
    return folder


def _rate(method: str, source: Path) -> float:
    """Return the bytes a second of the median of some runs."""
    return (source / "model.safetensors").stat().st_size / statistics.median(_run(method, source) for _ in range(RUNS))


def _run(method: str, source: Path) -> float:
    row = METHODS[method]
    with tempfile.TemporaryDirectory(dir=source) as output, Checkpoint.of(source) as weights:
        started = time.monotonic()
        row.quantize(weights, Output(Path(output)), row.Options(), silent())
        return time.monotonic() - started


def _hashing(folder: Path) -> float:
    started = time.monotonic()
    sha256(folder / "model.safetensors")
    return time.monotonic() - started


def _syncing(folder: Path) -> float:
    file = os.open(folder / "model.safetensors", os.O_RDONLY)
    started = time.monotonic()
    os.fsync(file)
    os.close(file)
    return time.monotonic() - started


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
