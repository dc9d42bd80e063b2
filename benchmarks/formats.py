"""Every format that is written here, beside llm-compressor's: size, loss, seconds and memory, in turn.

`python -m benchmarks.formats demo [WINDOWS [HELD_OUT [NAME …]]]` quantizes the demo model in every method and layout,
each in a fresh process, in groups of 64 where it has groups. A method that reads weights alone runs in three rounds,
one that reads text once. With names, those cells are measured and the others stay. Loss is KL(original ‖ result) in
nats a token on the texts of benchmarks/calibrated.py; what is stored in compressed-tensors is read by that package in
transformers, which rounds activations too where the config says so, and all else as there. A contender that fails is
in the results with the last line of its error.

`python -m benchmarks.formats streaming [FOLDER]` makes models of Llama-3-8B's shapes under FOLDER, as
benchmarks/streaming.py does, and quantizes them in every method that streams, as it is typed, beside `cp` of the same
folder and, on the smaller one, llm-compressor's own way without a model.

Each writes its part of benchmarks/results/formats.json. Times hold the start of Python and its imports.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, get_args

from backend.artifacts.artifact import versions
from backend.machine.hardware import hardware
from backend.models.demo import demo_folder
from backend.processes.child import ROOT
from backend.progress import silent
from backend.quantize import METHODS
from backend.quantize.calibrated.options import CalibratedOptions
from benchmarks.calibrated import (
    GROUP,
    HELD_OUT,
    WINDOWS,
    calibration,
    groups_of,
    llm_compressor,
    make,
    megabytes,
    peers,
    prepare,
    prose,
    python_of,
    quantize,
    write_rows,
)
from benchmarks.figures import DIGITS, spreads
from benchmarks.streaming import ROUNDS, SIZES, copy, make_model, run_command

RESULTS = Path(__file__).parent / "results" / "formats.json"
PEER = "llmcompressor"
CHOSEN = {"bits": 4, "group_size": GROUP}
"""What every method is told that can be told it."""
VARIANTS = {"fp8": (("--strategy", "block"),)}
"""More cells of a method, by what is added to its command line."""


class Cell(NamedTuple):
    """A contender: its command line, and how often it runs."""

    command: list[str]
    rounds: int


QUANTIZED = {"targets": ["Linear"], "ignore": ["lm_head"]}
SMOOTH = {"SmoothQuantModifier": {"smoothing_strength": 0.8}}
SEARCHED = {"observer": "memoryless_mse"}
RECIPES: dict[str, dict[str, Any]] = {
    "fp8": {"QuantizationModifier": {"scheme": "FP8_DYNAMIC", **QUANTIZED}},
    "fp8 --strategy block": {"QuantizationModifier": {"scheme": "FP8_BLOCK", **QUANTIZED}},
    "w8a16": {"QuantizationModifier": groups_of(8, **SEARCHED)},
    "w4a16": {"QuantizationModifier": groups_of(4, **SEARCHED)},
    "mxfp4": {"QuantizationModifier": {"scheme": "MXFP4A16", **QUANTIZED}},
    "gptq --layout compressed-tensors": {"GPTQModifier": groups_of(4)},
    "awq --layout compressed-tensors": {"AWQModifier": {}, "QuantizationModifier": groups_of(4, symmetric=False)},
    "w8a8": {**SMOOTH, "GPTQModifier": {"scheme": "W8A8", **QUANTIZED}},
    "nvfp4": {"QuantizationModifier": {"scheme": "NVFP4", **QUANTIZED}},
}
"""What llm-compressor is told, by our cell beside it."""
MODEL_FREE = """
import sys
from llmcompressor import model_free_ptq
model, output, scheme = sys.argv[1:]
model_free_ptq(model, output, scheme=scheme, ignore=["lm_head", "model.embed_tokens"])
"""
SCHEMES = {"fp8": "FP8_DYNAMIC", "fp8 --strategy block": "FP8_BLOCK", "mxfp4": "MXFP4A16"}
"""What llm-compressor does without a model, by our cell beside it."""


def main() -> None:
    """Run a part, and write it beside the other."""
    part, *words = sys.argv[1:]
    prepare(PEER)
    found = {"demo": demo, "streaming": streaming}[part](*words)
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    if words[2:] and part in known:  # some cells alone: the others stay as they were measured
        found["cells"] = known[part]["cells"] | found["cells"]
    known[part] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": hardware(),
        "versions": versions(("torch", "transformers", "numpy", "numba")) | peers(),
        **found,
    }
    RESULTS.write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(RESULTS.read_text(encoding="utf-8"))


def ours(windows: int) -> Iterator[tuple[str, Cell]]:
    """Return the cells of the methods and layouts that there are."""
    for method, row in METHODS.items():
        if "quantization_config" not in row.Options().config((), {}):
            continue  # an ordinary model
        fields = row.Options.model_fields
        layouts = get_args(fields["layout"].annotation) if "layout" in fields else ()
        written = [name for name in layouts if name == method or name not in METHODS]
        variants = [(), *VARIANTS.get(method, ()), *(("--layout", name) for name in written if name != method)]
        told = [word for name, value in CHOSEN.items() if name in fields and value in get_args(fields[name].annotation)
                for word in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip
        text = calibration(windows) if issubclass(row.Options, CalibratedOptions) else []
        for more in variants:
            command = quantize("--method", method, *told, *text, *more)
            yield " ".join((method, *more)), Cell(command, 3 if row.Options.streams else 1)


def demo(windows: str = str(WINDOWS), held_out: str = str(HELD_OUT), *names: str) -> dict[str, Any]:
    """Quantize the demo model in every cell, ours and the peer's in turn."""
    cells: dict[str, Cell] = {}
    for name, cell in ours(int(windows)):
        if name in names or not names:
            cells[name] = cell
            if name in RECIPES:
                cells[f"{name}: llm-compressor"] = Cell(llm_compressor(RECIPES[name]), cell.rounds)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = demo_folder(place, silent())
        write_rows(model, place, int(windows))
        (place / "held-out.json").write_text(json.dumps(prose(model, place, int(held_out))))
        losses: dict[str, dict[str, float]] = {}

        def run(name: str) -> dict[str, float]:
            figures = measured(cells[name].command, model, place)
            if name not in losses:
                losses[name] = loss(model, place)
            return figures

        found = in_turn({name: (cell.rounds, lambda n=name: run(n)) for name, cell in cells.items()})
    for name, kl in losses.items():
        found[name]["kl"] = kl
    return {"windows": int(windows), "held_out": int(held_out), "cells": found}


def measured(command: list[str], model: Path, place: Path) -> dict[str, float]:
    """Have a contender write its folder; give its time, memory and size."""
    shutil.rmtree(place / "out", ignore_errors=True)
    return make(command, model, place, place / "out") | {"megabytes": megabytes(place / "out")}


def loss(model: Path, place: Path) -> dict[str, float]:
    """Return KL on each text of what was written, read in the environment that has what its format needs."""
    settings = json.loads((place / "out" / "config.json").read_text()).get("quantization_config", {})
    python = python_of(PEER) if settings.get("quant_method") == "compressed-tensors" else sys.executable
    words = [python, "-m", "benchmarks.unpacked", str(model), str(place / "out"), str(place / "held-out.json")]
    done = subprocess.run(words, check=False, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {text: round(kl, DIGITS) for text, kl in found.items()}


def streaming(folder: str | None = None) -> dict[str, Any]:
    """Quantize models with the shapes of a larger one, as it is typed, beside `cp` and the peer."""
    found: dict[str, Any] = {}
    streams = {name: cell.command for name, cell in ours(1) if cell.rounds > 1}
    with tempfile.TemporaryDirectory(dir=folder) as made:
        place = Path(made)
        for size, layers in SIZES.items():
            source = make_model(place / size, layers)
            jobs: dict[str, Callable[[], dict[str, float]]] = {"cp": lambda s=source: copy(s, place / "out")}
            for name, command in streams.items():
                words = command[command.index("--method") :]
                jobs[name] = lambda s=source, w=words: run_command(s, place, *w)
                if size == "0.7B" and name in SCHEMES:
                    free = [python_of(PEER), "-c", MODEL_FREE, "{model}", "{output}", SCHEMES[name]]
                    jobs[f"{name}: llm-compressor"] = lambda s=source, c=free: measured(c, s, place)
            found[size] = in_turn({name: (ROUNDS[size], job) for name, job in jobs.items()})
            shutil.rmtree(source)
    return {"sizes": found, "ratios": {size: ratios(cells) for size, cells in found.items()}}


def in_turn(jobs: dict[str, tuple[int, Callable[[], dict[str, float]]]]) -> dict[str, dict[str, Any]]:
    """Run each job in so many rounds, one after the other in each; tell the figures, or why there are none."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in jobs}
    failed: dict[str, str] = {}
    for round_ in range(max(rounds for rounds, _ in jobs.values())):
        for name, (rounds, job) in jobs.items():
            if round_ >= rounds or name in failed:
                continue
            try:
                runs[name].append(job())
            except SystemExit as error:
                failed[name] = str(error).strip().splitlines()[-1]
            sys.stderr.write(f"{round_ + 1}/{rounds} {name}: {failed.get(name) or runs[name][-1]}\n")
    return {name: {"error": failed[name]} if name in failed else {"rounds": jobs[name][0], **spreads(runs[name])}
            for name in jobs}  # fmt: skip


def ratios(cells: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return how many times the time of `cp` each cell took, from the medians."""
    copied = cells["cp"]["seconds"]["median"]
    return {name: round(cell["seconds"]["median"] / copied, 2)
            for name, cell in cells.items() if name != "cp" and "seconds" in cell}  # fmt: skip


if __name__ == "__main__":
    main()
