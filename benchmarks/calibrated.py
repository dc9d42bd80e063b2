"""GPTQ and AWQ against GPTQModel, llm-compressor and NF4: loss, time and memory on the same rows, in turn.

`python -m benchmarks.calibrated [ROUNDS] [NAME …]` quantizes the demo model, each contender in a fresh process, one
after the other in each round, and writes benchmarks/results/calibrated.json. All read the same 32 windows of 512 tokens
of the embedded calibration text. Loss is KL(original ‖ result) in nats a token, of bfloat16 models that a reader in
this file alone has unpacked, on 12 windows of 512 tokens that nobody was calibrated on: of the same source, and of
Debian's policy manual. Peers run in environments of their own, .venv-gptqmodel and .venv-llmcompressor, which are made
where they are missing. GPTQModel's AWQ takes ten minutes and runs in the first round alone. Times hold the start of
Python and its imports.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backend.artifacts.artifact import versions
from backend.machine.hardware import hardware
from backend.models.demo import calibration_text, demo_folder, evaluation_text
from backend.processes.child import ROOT
from backend.progress import silent
from benchmarks.figures import spreads
from benchmarks.unpacked import divergence, tokens_of

RESULTS = Path(__file__).parent / "results" / "calibrated.json"
MANUAL = "debian-policy"  # the package whose text is "other prose"
WINDOWS, HELD_OUT, LENGTH, GROUP = 32, 12, 512, 64

PEERS = {"gptqmodel": "gptqmodel>=7.6,<7.7", "llmcompressor": "llmcompressor>=0.14,<0.15"}
TORCH = "torch==2.13.0"
"""The same in every environment."""

GPTQMODEL = """
import json, sys
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from gptqmodel.quantization import FORMAT, METHOD
model, rows, output, method, bits, group = sys.argv[1:]
more = {} if method == "gptq" else {"quant_method": METHOD.AWQ, "format": FORMAT.GEMM}
config = QuantizeConfig(bits=int(bits), group_size=int(group), sym=method != "awq, zero points", **more)
rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in json.load(open(rows))]
loaded = GPTQModel.load(model, config)
backend = BACKEND.AUTO if method == "gptq" else BACKEND.AWQ_TORCH  # for AWQ it chooses none that runs on a CPU
loaded.quantize(rows, batch_size=1, backend=backend)
loaded.save(output)
"""
LLMCOMPRESSOR = """
import json, sys
from datasets import Dataset
from llmcompressor import oneshot
from transformers import AutoModelForCausalLM
model, rows, output, recipe, kept = sys.argv[1:]
rows = json.load(open(rows))
loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
data = Dataset.from_list([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows])
oneshot(model=loaded, dataset=data, recipe=recipe, max_seq_length=len(rows[0]), num_calibration_samples=len(rows))
loaded.save_pretrained(output, save_compressed=kept == "compressed")
"""
TIMED = """
import json, resource, subprocess, sys, time
began = time.monotonic()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
seconds = time.monotonic() - began
if done.returncode:
    sys.exit(done.stderr.decode(errors="replace")[-4000:])
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
print(json.dumps({"seconds": seconds, "rss_mib": peak}))
"""
"""Measures a command from a process that is too small to count."""


def quantize(*words: str) -> list[str]:
    """Return the command line of ours, but for what differs from run to run."""
    return [sys.executable, "-m", "backend", "quantize", "{model}", "--output", "{output}", *words]


def calibration(windows: int) -> list[str]:
    """Return how ours is told to read so many windows of the text as it stands."""
    text = ["--calibration", "{text}", "--calibration-sample-by", "document"]
    return [*text, "--num-calibration-samples", str(windows), "--max-seq-length", str(LENGTH)]


def ours(method: str, bits: int, *more: str) -> list[str]:
    """Return the command line of a calibrated method of ours."""
    flags = ["--method", method, "--bits", str(bits), "--group-size", str(GROUP), *more]
    return quantize(*calibration(WINDOWS), *flags)


def python_of(name: str) -> str:
    """Return the Python of a peer's environment."""
    return str(ROOT / f".venv-{name}" / "bin" / "python")


def gptqmodel(method: str, bits: int) -> list[str]:
    """Return the command line of GPTQModel."""
    words = ["{model}", "{rows}", "{output}", method, str(bits), str(GROUP)]
    return [python_of("gptqmodel"), "-c", GPTQMODEL, *words]


def llm_compressor(recipe: Mapping[str, Any], kept: str = "compressed") -> list[str]:
    """Return the command line of llm-compressor.

    Args:
        recipe: Modifiers by their names.
        kept: How it keeps the weights: compressed or dense.
    """
    said = json.dumps({"all_stage": {"quantize_modifiers": recipe}})
    return [python_of("llmcompressor"), "-c", LLMCOMPRESSOR, "{model}", "{rows}", "{output}", said, kept]


def groups_of(bits: int, **more: Any) -> dict[str, Any]:
    """Return what a modifier of llm-compressor is told of integers in groups."""
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP, **more}
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}, "ignore": ["lm_head"]}


CONTENDERS = {
    "nf4": quantize("--method", "nf4"),
    "gptq-4: ours": ours("gptq", 4),
    "gptq-4: ours, refined": ours("gptq", 4, "--refine"),
    "gptq-4: ours, no symmetry": ours("gptq", 4, "--no-sym"),
    "gptq-4: GPTQModel": gptqmodel("gptq", 4),
    "gptq-4: llm-compressor": llm_compressor({"GPTQModifier": groups_of(4)}, "dense"),
    "awq-4: ours": ours("awq", 4),
    "awq-4: ours, refined": ours("awq", 4, "--refine"),
    "awq-4: GPTQModel": gptqmodel("awq", 4),
    "awq-4: GPTQModel, zero points": gptqmodel("awq, zero points", 4),  # its default has none
    "gptq-3: ours": ours("gptq", 3),
    "gptq-3: ours, refined": ours("gptq", 3, "--refine"),
    "gptq-3: GPTQModel": gptqmodel("gptq", 3),
    "gptq-2: ours": ours("gptq", 2),
    "gptq-2: ours, refined": ours("gptq", 2, "--refine"),
}

REFINED = ("gptq-4", "awq-4", "gptq-3", "gptq-2")
"""What ours runs with the training of scales too."""

ONCE = ("awq-4: GPTQModel", "awq-4: GPTQModel, zero points")


def main() -> None:
    """Run, print and write."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    wanted = {name: command for name, command in CONTENDERS.items() if name in sys.argv[2:] or not sys.argv[2:]}
    for name in PEERS:
        if any(f".venv-{name}" in command[0] for command in wanted.values()):
            prepare(name)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in wanted}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = demo_folder(place, silent())
        write_rows(model, place, WINDOWS)
        held_out = prose(model, place, HELD_OUT)
        for round_ in range(rounds):
            for name, command in wanted.items():
                if round_ and name in ONCE:
                    continue
                sys.stderr.write(f"{round_ + 1}/{rounds} {name}\n")
                found[name].append(run(command, model, place, held_out))
                sys.stderr.write(f"{found[name][-1]}\n")
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": hardware(),
        "versions": versions(("torch", "transformers", "numpy", "numba")) | peers(),
        "rounds": rounds,
        "ratios": ratios(found),
        "contenders": {name: spreads(runs) for name, runs in found.items()},
    }
    RESULTS.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(RESULTS.read_text(encoding="utf-8"))


def prepare(name: str) -> None:
    """Make a peer's environment, unless it is there."""
    place = ROOT / f".venv-{name}"
    if (place / "ready").is_file():
        return
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    subprocess.run([python_of(name), "-m", "pip", "install", "--quiet", PEERS[name], TORCH], check=True)
    (place / "ready").touch()


def peers() -> dict[str, str]:
    """Return the versions in the peers' environments."""
    found = {}
    for name in PEERS:
        python = python_of(name)
        if Path(python).is_file():
            code = f"import importlib.metadata as m; print(m.version('{name}'), m.version('transformers'))"
            done = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
            found[name], found[f"transformers of {name}"] = done.stdout.split()
    return found


def write_rows(model: Path, place: Path, windows: int) -> None:
    """Write so many windows of the calibration text: as tokens for peers, and as the same text for ours."""
    rows = tokens_of(model, calibration_text(), LENGTH)[:windows]
    (place / "rows.json").write_text(json.dumps(rows))
    (place / "calibration.txt").write_text(untokenized(model, rows), encoding="utf-8")


def untokenized(model: Path, rows: list[list[int]]) -> str:
    """Return the text that the windows were cut from, which is what ours reads."""
    from transformers import AutoTokenizer

    text: str = AutoTokenizer.from_pretrained(model).decode([token for row in rows for token in row])
    return text


def prose(model: Path, place: Path, windows: int) -> dict[str, list[list[int]]]:
    """Return so many windows of each text that nobody was calibrated on."""
    texts = {"same source": evaluation_text(), "other prose": manual(place)}
    return {name: tokens_of(model, text, LENGTH)[:windows] for name, text in texts.items()}


def manual(place: Path) -> str:
    """Return the prose of a manual, from Debian's package."""
    subprocess.run(["apt-get", "download", "-qq", MANUAL], check=True, cwd=place)
    subprocess.run(["dpkg", "-x", str(next(place.glob(f"{MANUAL}_*.deb"))), str(place / MANUAL)], check=True)
    found = next((place / MANUAL).rglob("policy.txt.gz"))
    return subprocess.run(["gzip", "-dc", str(found)], check=True, capture_output=True, text=True).stdout


def run(command: list[str], model: Path, place: Path, held_out: Mapping[str, list[list[int]]]) -> dict[str, float]:
    """Run a contender in a fresh process and measure what it made."""
    output = place / "out"
    shutil.rmtree(output, ignore_errors=True)
    figures = make(command, model, place, output)
    loss = {f"kl, {text}": kl for text, kl in divergence(model, output, held_out).items()}
    return {**figures, "megabytes": megabytes(output), **loss}


def megabytes(output: Path) -> float:
    """Return the size of a folder's weights."""
    return sum(path.stat().st_size for path in output.glob("*.safetensors")) / 1e6


def make(command: list[str], model: Path, place: Path, output: Path) -> dict[str, float]:
    """Have a contender write its folder, from the rows in `place`, and give its time and memory."""
    names = {"model": model, "output": output, "rows": place / "rows.json", "text": place / "calibration.txt"}
    words = [str(names[word[1:-1]]) if word[1:-1] in names and word[0] == "{" else word for word in command]
    more = {"OMP_NUM_THREADS": "2", "GPTQMODEL_CPU_WORKERS": "2", "WEIGHTSMITH_DATA": str(place / "data")}
    if words[0] == sys.executable:
        more["PYTHONPATH"] = str(ROOT)
    # Peers leave logs where they run.
    done = subprocess.run([sys.executable, "-c", TIMED, *words], cwd=place, env={**os.environ, **more},
                          capture_output=True, text=True)  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{words[:4]} failed:\n{done.stderr}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def ratios(found: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Return what the goals are set for, from the medians."""

    def over(name: str, other: str, key: str) -> dict[str, float]:
        if not (found.get(name) and found.get(other)):
            return {}
        ours_, theirs = (statistics.median(run[key] for run in found[who]) for who in (name, other))
        return {f"{name} / {other}, {key}": round(ours_ / theirs, 3)}

    compared: dict[str, float] = {}
    for kl in ("kl, same source", "kl, other prose"):
        for name in ("gptq-4: ours", "gptq-4: ours, no symmetry", "awq-4: ours"):
            for other in ("gptq-4: GPTQModel", "gptq-4: llm-compressor", "awq-4: GPTQModel", "nf4"):
                compared |= over(name, other, kl)
        compared |= over("gptq-3: ours", "gptq-3: GPTQModel", kl)
        for name in REFINED:
            compared |= over(f"{name}: ours, refined", f"{name}: ours", kl)
    for key in ("seconds", "rss_mib"):
        compared |= over("gptq-4: ours", "gptq-4: GPTQModel", key) | over("awq-4: ours", "awq-4: GPTQModel", key)
        compared |= over("gptq-4: ours", "gptq-4: llm-compressor", key)
        for name in REFINED:
            compared |= over(f"{name}: ours, refined", f"{name}: ours", key)
    return compared


if __name__ == "__main__":
    main()
