"""What a training takes against what was estimated: short runs of the demo model, each in a fresh process.

`python -m benchmarks.training_costs` writes benchmarks/results/training_costs.json.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from backend.artifacts.artifact import versions
from backend.finetune.costs import Machine, RowSizes, training_cost
from backend.finetune.options import FinetuneOptions
from backend.finetune.qlora import Rows, finetune
from backend.finetune.rendering import Rendered
from backend.machine.hardware import hardware, memory_bytes, peak_memory_bytes
from backend.models.demo import demo_folder, facts_of
from backend.models.loading import load_tokenizer
from backend.progress import Report, silent
from backend.settings import load_settings

STEPS = 2
RESULTS = Path(__file__).parent / "results" / "training_costs.json"
RUNS: tuple[tuple[int, dict[str, Any]], ...] = (  # tokens of a row, options
    (52, {"r": 16, "per_device_train_batch_size": 8}),
    (128, {"r": 64, "per_device_train_batch_size": 2}),
    (256, {"r": 16, "per_device_train_batch_size": 4}),
    (512, {"r": 8, "per_device_train_batch_size": 1, "attn_implementation": "eager"}),
    (512, {"r": 16, "per_device_train_batch_size": 3, "gradient_checkpointing": "on"}),
)


def main() -> None:
    """Measure, print and write; or, in a process of its own, measure one run."""
    base = load_settings().models / "demo"
    if sys.argv[1:]:
        _run(base, *json.loads(sys.argv[1]))
        return
    demo_folder(base.parent, silent())
    runs = []
    for run in RUNS:
        runs.append(_compared(base, *run))
        _write(runs)  # a machine that is shared may not let all of them finish
    sys.stdout.write(RESULTS.read_text(encoding="utf-8"))


def _write(runs: list[dict[str, Any]]) -> None:
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": hardware(),
        "load_average": os.getloadavg()[0],  # of other work too, where it is above the cores: time, not memory
        "versions": versions(("torch", "transformers", "peft", "trl", "bitsandbytes")),
        "runs": runs,
        "memory_estimated_over_measured": _range([run["estimated_bytes"] / run["measured_bytes"] for run in runs]),
        "step_estimated_over_measured": _range([run["estimated_step"] / run["measured_step"] for run in runs]),
    }
    RESULTS.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _compared(base: Path, tokens: int, options: dict[str, Any]) -> dict[str, Any]:
    """Run once, and put what it took beside the estimate; steps in seconds."""
    command = [sys.executable, "-m", "benchmarks.training_costs", json.dumps([tokens, options])]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    measured = json.loads(answer)
    facts, sizes = facts_of(base), RowSizes(1000, 1000 * tokens, tokens)
    few, more = (
        training_cost(facts, FinetuneOptions(**options, max_steps=steps), sizes, Machine(memory_bytes()))
        for steps in (1, 2)
    )
    return {
        "row_tokens": tokens,
        **options,
        **measured,
        "estimated_bytes": few.memory,
        "parts": few.host,
        "estimated_step": round(more.seconds - few.seconds, 2),
    }


def _run(base: Path, tokens: int, options: dict[str, Any]) -> None:
    """Train on rows of one length and print the peak memory, and the seconds of the second step."""
    times: list[float] = []
    report = Report(lambda event: times.append(time.monotonic()) if event["event"] == "metrics" else None)
    given = FinetuneOptions(**options, max_steps=STEPS, max_length=max(tokens, 16))
    row = [1000 + i % 40000 for i in range(tokens)]
    rows = Rows([Rendered(i, row, row, True, 0) for i in range(STEPS * given.per_device_train_batch_size)], [], [])
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "stages" / "adapter"
        output.mkdir(parents=True)
        finetune(base, rows, load_tokenizer(base), output, given, report)
    steps = [after - before for before, after in pairwise(times)]
    found = {"measured_bytes": peak_memory_bytes(), "measured_step": round(steps[0], 2)}
    sys.stdout.write(json.dumps(found) + "\n")


def _range(values: list[float]) -> list[float]:
    return [round(min(values), 2), round(max(values), 2)]


if __name__ == "__main__":
    main()
