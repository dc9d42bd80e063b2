"""Models that people pick, on sparse files of their true shapes: what is estimated, and what a run then takes.

`python -m benchmarks.shapes [FOLDER] [NAME …]` writes each model under FOLDER with transformers' own names and shapes
and holes for weights, estimates each method, runs NF4 as it is typed, and writes benchmarks/results/shapes.json. What
calibration takes is measured on the first blocks of the same shapes: all of them take hours on a CPU.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backend.artifacts.artifact import versions
from backend.artifacts.sealing import open_artifact
from backend.machine.hardware import hardware
from backend.processes.child import ROOT
from backend.weights.writer import INDEX, Shard, Slot, index, into_shards

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


def main() -> None:
    """Write each model, run, print and write."""
    where, *names = sys.argv[1:] or [None]
    found: dict[str, Any] = {}
    for name in names or MODELS:
        with tempfile.TemporaryDirectory(dir=where) as folder:
            source = write(name, Path(folder) / "source")
            estimates = {method: estimated(source, method) for method in METHODS}
            found[name] = {"estimates": estimates, "nf4": ran(source, Path(folder) / "out", "nf4")}
            shutil.rmtree(source)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": hardware(),
        "versions": versions(("numpy", "numba", "torch", "transformers")),
        "models": found,
    }
    RESULTS.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(RESULTS.read_text(encoding="utf-8"))


def write(name: str, folder: Path, layers: int | None = None) -> Path:
    """Write a model whose weights are holes.

    Args:
        name: One of MODELS.
        folder: Is made.
        layers: Blocks; None: all.
    """
    folder.mkdir(parents=True)
    config, slots = described(name, layers)
    shards = into_shards([[slot] for slot in slots], 5_000_000_000)
    for shard in shards:
        hollow(folder / shard.file, shard)
    if content := index(shards, sum(slot.bytes // 2 for slot in slots)):
        (folder / INDEX).write_bytes(content)
    (folder / "config.json").write_text(json.dumps(config))
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


def estimated(source: Path, method: str) -> dict[str, Any]:
    """Return what the command says that a method needs."""
    done = run("estimate", str(source), "--method", method, "--json")
    return json.loads(done) if done.startswith("{") else {"refused": done}


def ran(source: Path, output: Path, method: str) -> dict[str, Any]:
    """Run a method as it is typed and return what it took."""
    said = run("quantize", str(source), "--method", method, "--output", str(output))
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
