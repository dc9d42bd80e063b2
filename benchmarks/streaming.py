"""NF4 in pieces against transformers + bitsandbytes and against `cp`: time and memory, in turn, in fresh processes.

`python -m benchmarks.streaming [FOLDER]` makes models of Llama-3-8B's shapes with random weights under FOLDER, runs
each contender ROUNDS times, one after the other in each round, and writes benchmarks/results/streaming.json. The peer
runs on the smaller model only: it needs the memory of the whole model. Times hold the start of Python and its imports;
sources are in the page cache, results are not forced to the disk.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from backend.executors.local import ROOT
from backend.models.artifacts import versions
from backend.models.machine import hardware
from backend.weights.output import Output
from backend.weights.writer import INDEX, Slot, Writer, index, lay_out

ROUNDS = 5
RESULTS = Path(__file__).parent / "results" / "streaming.json"

HIDDEN, INTERMEDIATE, KEYS, VOCABULARY = 4096, 14336, 1024, 32000
SIZES = {"0.7B": 2, "8B": 32}  # decoder layers

OURS = """
import sys; from pathlib import Path
from backend.progress import silent; from backend.quantize import nf4
from backend.weights.checkpoint import Checkpoint; from backend.weights.output import Output
with Checkpoint.of(Path(sys.argv[1])) as weights:
    nf4.quantize(weights, Output(Path(sys.argv[2])), nf4.Options(bnb_4bit_compute_dtype="float32"), silent())
"""
PEER = """
import sys, torch; from transformers import AutoModelForCausalLM, BitsAndBytesConfig
config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
model = AutoModelForCausalLM.from_pretrained(
    sys.argv[1], quantization_config=config, dtype="auto", device_map={"": "cpu"})
model.save_pretrained(sys.argv[2])
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
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        place = Path(folder)
        found: dict[str, Any] = {}
        for size, layers in SIZES.items():
            source = make_model(place / size, layers)
            runs: dict[str, Callable[[], dict[str, float]]] = {
                "ours": lambda s=source: run_python(OURS, s, place / "out"),
                "cp": lambda s=source: copy(s, place / "out"),
            }
            if size == "0.7B":
                runs["transformers + bitsandbytes"] = lambda s=source: run_python(PEER, s, place / "out")
            rounds = [{name: run() for name, run in runs.items()} for _ in range(ROUNDS)]
            found[size] = {name: spread([r[name] for r in rounds]) for name in runs}
            if "transformers + bitsandbytes" in runs:
                found[size]["identical tensors"] = identical(source, place)
            shutil.rmtree(source)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": hardware(),
        "versions": versions(("numpy", "numba", "torch", "transformers", "bitsandbytes", "safetensors")),
        "rounds": ROUNDS,
        "nf4 with double quantization": found,
    }
    RESULTS.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(RESULTS.read_text(encoding="utf-8"))


def make_model(folder: Path, layers: int) -> Path:
    """Write a Llama of random weights: the first two layers for real, the others as copies of their bytes."""
    folder.mkdir(parents=True)
    slots = [Slot("model.embed_tokens.weight", "BF16", (VOCABULARY, HIDDEN))]
    for layer in range(layers):
        slots += [Slot(f"model.layers.{layer}.{name}.weight", "BF16", shape) for name, shape in LAYER.items()]
    slots += [Slot("model.norm.weight", "BF16", (HIDDEN,)), Slot("lm_head.weight", "BF16", (VOCABULARY, HIDDEN))]
    output = Output(folder)
    layouts = lay_out([[slot] for slot in slots])
    noise = np.random.default_rng(0).standard_normal(1 << 24, np.float32) * np.float32(0.02)
    bits = (noise.view(np.uint32) >> 16).astype(np.uint16)
    for layout in layouts:
        writer = Writer(output, layout)
        for slot in slots:
            for first in range(0, slot.bytes // 2 if slot.name in layout.names else 0, len(bits)):
                writer.write(slot.name, bits[: min(len(bits), slot.bytes // 2 - first)], 2 * first)
        writer.close()
    if content := index(layouts, sum(slot.bytes // 2 for slot in slots), sum(output.finished.values())):
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


def run_python(code: str, source: Path, output: Path) -> dict[str, float]:
    """Run code in a fresh process; give seconds and peak memory in MiB."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    with tempfile.TemporaryFile() as peak:
        command = ["bash", "-c", f'exec "$@" 3>&{peak.fileno()}', "_", sys.executable, "-c", MEASURED + code]
        started = time.monotonic()
        subprocess.run(
            [*command, str(source), str(output)], check=True, cwd=ROOT, pass_fds=[peak.fileno()], capture_output=True
        )
        seconds = time.monotonic() - started
        peak.seek(0)
        memory = json.loads(peak.read())
    return {"seconds": seconds, "rss_mib": memory["rss"] / 1024, "anonymous_mib": memory["anonymous"] / 1024}


def copy(source: Path, output: Path) -> dict[str, float]:
    """Copy the source with cp; give seconds."""
    shutil.rmtree(output, ignore_errors=True)
    started = time.monotonic()
    subprocess.run(["cp", "-r", str(source), str(output)], check=True)
    return {"seconds": time.monotonic() - started}


def identical(source: Path, place: Path) -> str:
    """Compare ours with the peer's result tensor by tensor."""
    from safetensors import safe_open  # noqa: PLC0415 - brings torch, which this process else does without

    run_python(OURS, source, place / "ours")
    run_python(PEER, source, place / "peer")
    with (
        safe_open(place / "ours" / "model.safetensors", "pt") as ours,
        safe_open(place / "peer" / "model.safetensors", "pt") as peer,
    ):
        names = {*ours.keys(), *peer.keys()}
        both = set(ours.keys()) & set(peer.keys())
        same = sum(bool((ours.get_tensor(name) == peer.get_tensor(name)).all()) for name in both)
    shutil.rmtree(place / "ours")
    shutil.rmtree(place / "peer")
    return f"{same} of {len(names)}"


def spread(runs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Give median and range of each figure."""
    return {
        key: {
            "median": round(statistics.median(run[key] for run in runs), 2),
            "min": round(min(run[key] for run in runs), 2),
            "max": round(max(run[key] for run in runs), 2),
        }
        for key in runs[0]
    }


if __name__ == "__main__":
    main()
