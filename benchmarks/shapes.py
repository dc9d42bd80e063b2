"""Models that people pick, on files of their true shapes: what is estimated, and what a run then takes.

`python -m benchmarks.shapes [NAME …]` writes each model with transformers' own names and shapes, estimates each method,
runs some as they are typed, and writes what it has found into benchmarks/results/shapes.json after each model. Whole
models are sparse files with holes for weights. Calibration runs on the first block alone, of random weights: all take
hours on a CPU, and one block at a time is in memory. NF4 of mixtures, whose experts stay in 16 bit and would fill the
disk, runs on the first twelve.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from backend.artifacts.artifact import versions
from backend.artifacts.sealing import open_artifact
from backend.machine.hardware import hardware
from backend.processes.child import ROOT
from backend.weights.floats import from_float32
from backend.weights.writer import INDEX, Shard, Slot, index, into_shards
from tests.support.tokenizers_made import make_tokenizer

RESULTS = Path(__file__).parent / "results" / "shapes.json"
METHODS = ("cast", "int8", "nf4", "gptq", "awq")

QWEN_TOWER = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 5120}
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "Qwen3-30B-A3B": ("qwen3_moe", {
        "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
        "head_dim": 128, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128,
        "num_experts_per_tok": 8, "vocab_size": 151936, "max_position_embeddings": 40960,
    }, None),
    "gpt-oss-20b": ("gpt_oss", {
        "hidden_size": 2880, "num_hidden_layers": 24, "num_attention_heads": 64, "num_key_value_heads": 8,
        "head_dim": 64, "intermediate_size": 2880, "num_local_experts": 32, "num_experts_per_tok": 4,
        "vocab_size": 201088,
    }, None),
    "Gemma-4-31B": ("gemma4", {
        "hidden_size": 5376, "num_hidden_layers": 60, "num_attention_heads": 32, "num_key_value_heads": 16,
        "head_dim": 256, "global_head_dim": 512, "num_global_key_value_heads": 4, "intermediate_size": 21504,
        "vocab_size": 262144, "hidden_size_per_layer_input": 0, "attention_k_eq_v": True,
        "max_position_embeddings": 262144,
    }, {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
        "num_key_value_heads": 16, "head_dim": 72}),
    "Qwen3.8-27B": ("qwen3_5", {
        "hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 24, "num_key_value_heads": 4,
        "head_dim": 256, "intermediate_size": 17408, "linear_num_key_heads": 16, "linear_num_value_heads": 48,
        "vocab_size": 248320, "max_position_embeddings": 262144,
    }, QWEN_TOWER),
}  # fmt: skip
"""Model type, text and tower, as their config.json says."""


SAMPLES = ("--num-calibration-samples", "16", "--group-size", "32")
UNSEARCHED = ("Gemma-4-31B", "Qwen3.8-27B")
"""Models that are calibrated without the search for scales: it takes most of the time, and no more memory."""
FIRST = {"nf4": 12, "gptq": 1}
"""Blocks that a method runs on where it does not take all of them."""
WHOLE = 25_000_000_000
"""Bytes of a result up to which NF4 takes the whole model."""


def main() -> None:
    """Write each model, run, and write what was found beside what is known of the others."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=[*MODELS], metavar="NAME")
    parser.add_argument("--methods", nargs="+", choices=FIRST, default=[*FIRST])
    parser.add_argument("--folder", help="Where models are written meanwhile.")
    parser.add_argument("--most-memory", type=float, default=float("inf"), help="Bytes; more is estimated alone.")
    asked = parser.parse_args()
    tempfile.tempdir = asked.folder
    for name in asked.names:
        with tempfile.TemporaryDirectory() as folder:
            source = write(name, Path(folder) / "source")
            estimates = {method: estimated(source, method) for method in METHODS}
        large = estimates["nf4"]["output_bytes"] > WHOLE
        runs = {}
        for method in asked.methods:
            layers = FIRST[method] if large or method == "gptq" else None
            words = SAMPLES if method == "gptq" else ()
            words += ("--no-scale-search",) if method == "gptq" and name in UNSEARCHED else ()
            runs[method] = compared(name, method, layers, asked.most_memory, *words)
        keep(name, estimates, runs)
    sys.stdout.write(RESULTS.read_text(encoding="utf-8"))


def keep(name: str, estimates: dict[str, Any], runs: dict[str, Any]) -> None:
    """Put what was found of a model into the results."""
    known = json.loads(RESULTS.read_text(encoding="utf-8"))["models"] if RESULTS.is_file() else {}
    before = known.get(name, {}).get("runs", {})
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": hardware(),
        "versions": versions(("numpy", "numba", "torch", "transformers")),
        "models": {**known, name: {"estimates": estimates, "runs": before | runs}},
    }
    RESULTS.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def compared(name: str, method: str, layers: int | None, most: float, *words: str) -> dict[str, Any]:
    """Return what a method is estimated to take, and what it took.

    Args:
        name: One of MODELS.
        method: Of METHODS.
        layers: Blocks that it takes; None: all.
        most: Bytes of memory; what is estimated to take more is not run.
        words: More of the command line.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = write(name, Path(folder) / "source", layers, holes=method == "nf4")
        said = estimated(source, method, *words)
        if said.get("peak_memory_bytes", 0) > most:
            return {"layers": layers, "options": words, "estimated": said}
        took = ran(source, Path(folder) / "out", method, *words)
    ratio = took["peak_memory_bytes"] / said["peak_memory_bytes"] if "refused" not in said | took else None
    found = {"layers": layers, "options": words, "estimated": said, "measured": took}
    return {**found, "peak_memory_ratio": ratio and round(ratio, 2)}


def write(name: str, folder: Path, layers: int | None = None, holes: bool = True) -> Path:
    """Write a model.

    Args:
        name: One of MODELS.
        folder: Is made.
        layers: Blocks; None: all.
        holes: Whether its files hold no weights, or random ones.
    """
    folder.mkdir(parents=True)
    config, slots = described(name, layers)
    shards = into_shards([[slot] for slot in slots], 5_000_000_000)
    for shard in shards:
        hollow(folder / shard.file, shard)
        if not holes:
            fill(folder / shard.file, len(shard.head({})))
    if content := index(shards, sum(slot.bytes // 2 for slot in slots)):
        (folder / INDEX).write_bytes(content)
    (folder / "config.json").write_text(json.dumps(config))
    make_tokenizer().save_pretrained(folder)
    return folder


def described(name: str, layers: int | None) -> tuple[dict[str, Any], list[Slot]]:
    """Return a model's config and the tensors that its checkpoint holds, from transformers' own class."""
    import torch
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    model_type, text, tower = MODELS[name]
    text = text | ({"num_hidden_layers": layers} if layers else {})
    made = transformers.CONFIG_MAPPING[model_type]
    config = made(**text) if tower is None else made(text_config=text, vision_config=tower)
    auto = transformers.AutoModelForCausalLM if tower is None else transformers.AutoModelForImageTextToText
    with torch.device("meta"):
        model = auto.from_config(config, dtype=torch.bfloat16)
    tied = set(model.all_tied_weights_keys)
    weights = {n: p for n, p in model.state_dict(keep_vars=True).items() if n not in tied}
    saved = revert_weight_conversion(model, weights)
    said = config.to_dict() | {"architectures": [type(model).__name__], "dtype": "bfloat16"}
    return said, [Slot(n, "BF16", tuple(p.shape)) for n, p in sorted(saved.items(), key=lambda pair: order(pair[0]))]


def order(name: str) -> list[tuple[bool, Any]]:
    """Return what sorts names as checkpoints do: numbers by their size."""
    return [(part.isdigit(), int(part) if part.isdigit() else part) for part in name.split(".")]


def hollow(path: Path, shard: Shard) -> None:
    """Write a file's header, and let its data be a hole."""
    with path.open("wb") as file:
        file.write(shard.head({}))
        file.truncate(shard.size)


def fill(path: Path, start: int) -> None:
    """Put one long row of random numbers into a file, again and again."""
    row = np.random.default_rng(0).normal(0, 0.02, 1 << 24).astype(np.float32)
    raw = from_float32(row, "BF16").tobytes()
    with path.open("r+b") as file:
        left = path.stat().st_size - file.seek(start)
        while left:
            left -= file.write(raw[:left])


def estimated(source: Path, method: str, *words: str) -> dict[str, Any]:
    """Return what the command says that a method needs."""
    done = run("estimate", str(source), "--method", method, *words, "--json")
    if not done.startswith("{"):
        return {"refused": done}
    said = json.loads(done)
    return {key: said[key] for key in ("output_bytes", "peak_memory_bytes", "disk_bytes", "seconds")}


def ran(source: Path, output: Path, method: str, *words: str) -> dict[str, Any]:
    """Run a method as it is typed and return what it took."""
    said = run("quantize", str(source), "--method", method, *words, "--output", str(output))
    if not output.is_dir():
        return {"refused": said}
    artifact = open_artifact(output)
    size = sum(path.stat().st_size for path in output.iterdir())
    shutil.rmtree(output)
    return {"output_bytes": size, "peak_memory_bytes": artifact.peak_memory_bytes, "seconds": artifact.seconds}


def run(*words: str) -> str:
    """Return what a command prints, or the last line of its errors."""
    done = subprocess.run(
        [sys.executable, "-m", "backend", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


if __name__ == "__main__":
    main()
