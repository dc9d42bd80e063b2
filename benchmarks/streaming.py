"""NF4 and LoRA merging in pieces against transformers + bitsandbytes, PEFT and `cp`: time and memory, in turn.

`python -m benchmarks.streaming [FOLDER]` makes models of Llama-3-8B's shapes with random weights under FOLDER, runs
each contender in a fresh process, one after the other in each round, and writes benchmarks/results/streaming.json. The
peers run on the smaller model only: they need the memory of the whole model. Times hold the start of Python and its
imports; sources are in the page cache. The command is `python -m backend quantize` as it is typed: it looks at the
model, estimates, isolates its worker, hashes the result and forces it to the disk, which the stage alone, the peers and
`cp` do not.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from backend.artifacts.artifact import versions
from backend.artifacts.sealing import open_artifact
from backend.machine.hardware import hardware
from backend.processes.child import ROOT
from backend.weights.output import Output
from backend.weights.writer import INDEX, Slot, Writer, index, into_shards
from benchmarks.figures import spreads

ROUNDS = {"0.7B": 5, "8B": 3}
RESULTS = Path(__file__).parent / "results" / "streaming.json"

HIDDEN, INTERMEDIATE, KEYS, VOCABULARY = 4096, 14336, 1024, 32000
SIZES = {"0.7B": 2, "8B": 32}  # decoder layers
RANK = 16

QUANTIZE = """
import sys; from pathlib import Path
from backend.progress import silent; from backend.quantize import METHODS
from backend.weights.checkpoint import Checkpoint; from backend.weights.output import Output
with Checkpoint.of(Path(sys.argv[1])) as weights:
    options = METHODS["nf4"].Options(bnb_4bit_compute_dtype="float32")
    METHODS["nf4"].quantize(weights, Output(Path(sys.argv[2])), options, silent())
"""
BITSANDBYTES = """
import sys, torch; from transformers import AutoModelForCausalLM, BitsAndBytesConfig
config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
model = AutoModelForCausalLM.from_pretrained(
    sys.argv[1], quantization_config=config, dtype="auto", device_map={"": "cpu"})
model.save_pretrained(sys.argv[2])
"""
MERGE = """
import sys; from pathlib import Path
from backend.merge.merging import MergeOptions, merge, merged; from backend.options import parse
from backend.progress import silent
from backend.weights.checkpoint import Checkpoint; from backend.weights.output import Output
options = parse(MergeOptions, {"adapters": [sys.argv[3]]}, context={"paths": True})
with Checkpoint.of(Path(sys.argv[1])) as base, merged(base, [Path(sys.argv[3])], options, silent()) as weights:
    merge(weights, Output(Path(sys.argv[2])), options, silent())
"""
PEFT = """
import sys; from peft import PeftModel; from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto", device_map={"": "cpu"})
PeftModel.from_pretrained(model, sys.argv[3]).merge_and_unload().save_pretrained(sys.argv[2])
"""
MEASURED = """
import atexit, json, os, sys, threading, time
peak = {"rss": 0, "anonymous": 0}
def look():
    while True:
        for line in open("/proc/self/status"):
            for key, name in (("rss", "VmRSS"), ("anonymous", "RssAnon")):
                if line.startswith(name):
                    peak[key] = max(peak[key], int(line.split()[1]))
        time.sleep(0.02)
threading.Thread(target=look, daemon=True).start()
atexit.register(lambda: os.write(3, json.dumps(peak).encode()))
"""


def main() -> None:
    """Make the models, run, print and write."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        place = Path(folder)
        for size, layers in SIZES.items():
            source, adapter = make_model(place / size, layers), make_adapter(place / f"{size}-adapter", layers)
            runs: dict[str, Callable[[], dict[str, float]]] = {
                "cp": lambda s=source: copy(s, place / "out"),
                "nf4: the command": lambda s=source: run_command(s, place, "--method", "nf4"),
                "nf4: ours": lambda s=source: run_python(QUANTIZE, s, place / "out"),
                "merge: ours": lambda s=source, a=adapter: run_python(MERGE, s, place / "out", a),
            }
            if size == "0.7B":
                runs["nf4: transformers + bitsandbytes"] = lambda s=source: run_python(BITSANDBYTES, s, place / "out")
                runs["merge: PEFT"] = lambda s=source, a=adapter: run_python(PEFT, s, place / "out", a)
            rounds = [{name: run() for name, run in runs.items()} for _ in range(ROUNDS[size])]
            found[size] = {"rounds": ROUNDS[size]} | {
                name: spreads([r[name] for r in rounds], digits=2) for name in runs
            }
            if size == "0.7B":
                found[size] |= identical(source, place) | off(source, adapter, place)
            shutil.rmtree(source)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": hardware(),
        "versions": versions(("numpy", "numba", "torch", "transformers", "bitsandbytes", "peft", "safetensors")),
        "ratios": ratios(found),
        "sizes": found,
    }
    RESULTS.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(RESULTS.read_text(encoding="utf-8"))


def make_model(folder: Path, layers: int) -> Path:
    """Write a Llama whose weights are pieces of one long row of random numbers."""
    folder.mkdir(parents=True)
    slots = [Slot("model.embed_tokens.weight", "BF16", (VOCABULARY, HIDDEN))]
    for layer in range(layers):
        slots += [Slot(f"model.layers.{layer}.{name}.weight", "BF16", shape) for name, shape in LAYER.items()]
    slots += [Slot("model.norm.weight", "BF16", (HIDDEN,)), Slot("lm_head.weight", "BF16", (VOCABULARY, HIDDEN))]
    output = Output(folder)
    shards = into_shards([[slot] for slot in slots])
    noise = np.random.default_rng(0).standard_normal(1 << 24, np.float32) * np.float32(0.02)
    bits = (noise.view(np.uint32) >> 16).astype(np.uint16)
    for shard in shards:
        writer = Writer(output, shard)
        for slot in slots:
            for first in range(0, slot.bytes // 2 if slot.name in shard.names else 0, len(bits)):
                writer.write(slot.name, bits[: min(len(bits), slot.bytes // 2 - first)], 2 * first)
        writer.close()
    if content := index(shards, sum(slot.bytes // 2 for slot in slots), sum(output.finished.values())):
        (folder / INDEX).write_bytes(content)
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "dtype": "bfloat16",
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": layers, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": VOCABULARY, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


LAYER = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KEYS, HIDDEN), "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN), "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
}  # fmt: skip
LINEARS = [name for name, shape in LAYER.items() if len(shape) == 2]


def make_adapter(folder: Path, layers: int) -> Path:
    """Write an adapter of random numbers on every linear layer, as PEFT keeps it."""
    folder.mkdir(parents=True)
    shapes = {}
    for layer in range(layers):
        for name in LINEARS:
            rows, columns = LAYER[name]
            prefix = f"base_model.model.model.layers.{layer}.{name}.lora"
            shapes |= {f"{prefix}_A.weight": (RANK, columns), f"{prefix}_B.weight": (rows, RANK)}
    [shard] = into_shards([[Slot(name, "F32", shape)] for name, shape in shapes.items()])
    writer, rng = Writer(Output(folder), shard), np.random.default_rng(1)
    for name, shape in shapes.items():
        writer.write(name, rng.standard_normal(shape, np.float32) * np.float32(0.01))
    writer.close()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK,
              "target_modules": [name.rpartition(".")[2] for name in LINEARS]}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def run_python(code: str, source: Path, output: Path, *more: Path) -> dict[str, float]:
    """Run code in a fresh process; give seconds and peak memory in MiB."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    with tempfile.TemporaryFile() as peak:
        command = ["bash", "-c", f'exec "$@" 3>&{peak.fileno()}', "_", sys.executable, "-c", MEASURED + code]
        command += [str(path) for path in (source, output, *more)]
        started = time.monotonic()
        subprocess.run(command, check=True, cwd=ROOT, pass_fds=[peak.fileno()], capture_output=True)
        seconds = time.monotonic() - started
        peak.seek(0)
        memory = json.loads(peak.read())
    return {"seconds": seconds, "rss_mib": memory["rss"] / 1024, "anonymous_mib": memory["anonymous"] / 1024}


def run_command(source: Path, place: Path, *words: str) -> dict[str, float]:
    """Quantize as a user types it; give seconds, and the peak memory in MiB of the process that computes."""
    output = place / "out"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "backend", "quantize", str(source), *words, "--output", str(output)]
    env = os.environ | {"WEIGHTSMITH_DATA": str(place / "data")}
    started = time.monotonic()
    subprocess.run(command, check=True, cwd=ROOT, env=env, capture_output=True)
    seconds = time.monotonic() - started
    peak = open_artifact(output).peak_memory_bytes
    assert peak
    return {"seconds": seconds, "rss_mib": peak / 2**20}


def copy(source: Path, output: Path) -> dict[str, float]:
    """Copy the source with cp; give seconds."""
    shutil.rmtree(output, ignore_errors=True)
    started = time.monotonic()
    subprocess.run(["cp", "-r", str(source), str(output)], check=True)
    return {"seconds": time.monotonic() - started}


def identical(source: Path, place: Path) -> dict[str, Any]:
    """Compare ours with the peer's result tensor by tensor."""
    from safetensors import safe_open  # noqa: PLC0415 - brings torch, which this process else does without

    run_python(QUANTIZE, source, place / "ours")
    run_python(BITSANDBYTES, source, place / "peer")
    files = [place / side / "model.safetensors" for side in ("ours", "peer")]
    with safe_open(files[0], "pt") as ours, safe_open(files[1], "pt") as peer:
        names, both = {*ours.keys(), *peer.keys()}, set(ours.keys()) & set(peer.keys())
        same = sum(bool((ours.get_tensor(name) == peer.get_tensor(name)).all()) for name in both)
    for side in ("ours", "peer"):
        shutil.rmtree(place / side)
    return {"nf4: tensors with the peer's bytes": f"{same} of {len(names)}"}


def off(source: Path, adapter: Path, place: Path) -> dict[str, Any]:
    """Count elements that are not the float64 result rounded once, in one layer's linears."""
    import torch
    from safetensors import safe_open  # noqa: PLC0415

    run_python(MERGE, source, place / "ours", adapter)
    run_python(PEFT, source, place / "peer", adapter)
    count, wrong = 0, {"ours": 0, "peer": 0}
    with (
        safe_open(source / "model.safetensors", "pt") as base,
        safe_open(adapter / "adapter_model.safetensors", "pt") as lora,
    ):
        for name in LINEARS:
            full, prefix = f"model.layers.0.{name}.weight", f"base_model.model.model.layers.0.{name}.lora"
            a, b = (lora.get_tensor(f"{prefix}_{side}.weight").double() for side in "AB")
            exact = base.get_tensor(full).double() + 2 * (b @ a)
            count += exact.numel()
            for side in wrong:
                with safe_open(place / side / "model.safetensors", "pt") as found:
                    merged = found.get_tensor(full)
                    error, more, less = ((merged.double() - exact).abs(), *neighbors(merged, torch))
                    wrong[side] += int(((error > (more - exact).abs()) | (error > (less - exact).abs())).sum())
    for side in wrong:
        shutil.rmtree(place / side)
    return {"merge: elements that are not the nearest": {s: f"{n} of {count}" for s, n in wrong.items()}}


def neighbors(values: Any, torch: Any) -> tuple[Any, Any]:
    """Return the next bfloat16 numbers above and below, in float64."""
    bits = values.view(torch.int16)
    return tuple((bits + step).view(torch.bfloat16).double() for step in (1, -1))


def ratios(found: dict[str, Any]) -> dict[str, float]:
    """Return what the goals are set for, from the medians."""
    small, large = found["0.7B"], found["8B"]

    def median(run: dict[str, Any], key: str) -> float:
        return float(run[key]["median"])

    nf4, peer, command = (small[f"nf4: {name}"] for name in ("ours", "transformers + bitsandbytes", "the command"))
    merge, peft = small["merge: ours"], small["merge: PEFT"]
    return {
        "nf4, the command: times faster": round(median(peer, "seconds") / median(command, "seconds"), 1),
        "nf4, the command: times the time of cp, 0.7B": round(
            median(command, "seconds") / median(small["cp"], "seconds"), 2
        ),
        "nf4, the command: times the time of cp, 8B": round(
            median(large["nf4: the command"], "seconds") / median(large["cp"], "seconds"), 2
        ),
        "nf4: times faster": round(median(peer, "seconds") / median(nf4, "seconds"), 1),
        "nf4: times less RSS": round(median(peer, "rss_mib") / median(nf4, "rss_mib"), 1),
        "nf4: times less anonymous memory": round(median(peer, "anonymous_mib") / median(nf4, "anonymous_mib"), 1),
        "nf4: times the time of cp, 0.7B": round(median(nf4, "seconds") / median(small["cp"], "seconds"), 2),
        "nf4: times the time of cp, 8B": round(
            median(large["nf4: ours"], "seconds") / median(large["cp"], "seconds"), 2
        ),
        "nf4: RSS at 8B over 0.7B": round(median(large["nf4: ours"], "rss_mib") / median(nf4, "rss_mib"), 3),
        "merge: times faster": round(median(peft, "seconds") / median(merge, "seconds"), 1),
        "merge: times less RSS": round(median(peft, "rss_mib") / median(merge, "rss_mib"), 1),
        "merge: times less anonymous memory": round(median(peft, "anonymous_mib") / median(merge, "anonymous_mib"), 1),
    }


if __name__ == "__main__":
    main()
