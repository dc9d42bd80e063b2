"""What a training is said to need, and the settings that are named where there is too little."""

import json
import re
import subprocess
import sys

import pytest

from backend.errors import HardwareError
from backend.executors import local
from backend.executors.local import this_machine
from backend.finetune.costs import Machine, RowSizes, fitting, sizes_of, training_cost
from backend.finetune.options import FinetuneOptions
from backend.finetune.qlora import out_of_memory
from backend.finetune.rendered import Survey
from backend.models.demo import demo_facts
from backend.models.inspection import inspect
from backend.processes.child import ROOT
from backend.recipes import parse_recipe
from backend.settings import Settings
from backend.stages.estimate import check_room, estimate
from backend.weights.anatomy import is_linear

GIB = 2**30
LARGE = {"max_length": 2048, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 2}
LONG = RowSizes(1000, 1_500_000, 2048)


@pytest.fixture
def demo():
    return demo_facts()


def named(text):
    """Return the settings that a sentence names."""
    words = re.search(r"fits with ([^.]*?)(, which|\.|$)", text)[1]
    pairs = (pair.split(" ") for pair in words.split(", "))
    return {name: int(value) if value.isdigit() else value for name, value in pairs}


def seen(rows, tokens, longest):
    return Survey(rows=rows, tokens=tokens, learned_tokens=tokens, longest=longest, truncated=0, masked=0, endless=0,
                  histogram=(), samples=())  # fmt: skip


def test_a_base_costs_what_it_is_held_as(demo):
    def base(machine, **options):
        cost = training_cost(demo, FinetuneOptions(**options), LONG, machine)
        return (cost.gpu or cost.host)["base"] / demo.parameters

    linear = sum(t.elements for t in demo.tensors if is_linear(t)) / demo.parameters
    assert base(Machine(64 * GIB)) == base(Machine(64 * GIB), quantization="none") == 2  # unpacked
    assert base(Machine(GIB)) == base(Machine(64 * GIB, 24 * GIB)) == pytest.approx(2 - 1.484 * linear, abs=0.001)
    assert base(Machine(64 * GIB), quantization="int8") == pytest.approx(2 - linear, abs=0.001)


def test_adapter_gradients_and_optimizer_are_counted_by_the_optimizer(demo):
    def adapter(**options):
        return training_cost(demo, FinetuneOptions(**options), LONG, Machine(64 * GIB)).host["adapter"]

    trained = 30 * 16 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))
    assert adapter(optim="sgd") == 8 * trained
    assert adapter() == adapter(optim="adamw_torch") == 16 * trained
    assert adapter(optim="paged_adamw_8bit") == 10 * trained
    assert adapter(r=64) == 64 * trained


def test_a_gpu_takes_the_model_and_the_machine_keeps_a_process_for_each(demo):
    cost = training_cost(demo, FinetuneOptions(), LONG, Machine(64 * GIB, 24 * GIB, 4))
    assert cost.host.keys() == {"process"}
    assert {"context", "base", "adapter", "activations", "logits"} == cost.gpu.keys()
    alone = training_cost(demo, FinetuneOptions(), LONG, Machine(64 * GIB, 24 * GIB))
    assert (cost.memory, cost.gpu_memory) == (4 * alone.memory, alone.gpu_memory)
    assert cost.seconds < alone.seconds
    together = training_cost(demo, FinetuneOptions(), LONG, Machine(64 * GIB, 0, 2))
    assert together.memory == 2 * training_cost(demo, FinetuneOptions(), LONG, Machine(64 * GIB)).memory


def test_rows_that_were_looked_at_replace_the_guess(demo):
    options = FinetuneOptions(max_length=256)
    assert sizes_of(options) == (1000, 64_000, 128)
    assert sizes_of(options, seen(10, 3000, 900)) == (10, 3000, 256)
    few, many = (
        training_cost(demo, options, sizes_of(options, seen(rows, 200 * rows, 250)), Machine(64 * GIB))
        for rows in (10, 1000)
    )
    assert many.seconds - 25 == pytest.approx(100 * (few.seconds - 25))
    assert many.memory == few.memory


def test_what_learns_the_same_is_named_before_what_does_not(demo):
    options, machine = FinetuneOptions(**LARGE), Machine(64 * GIB)
    needed = training_cost(demo, options, LONG, machine).needed
    assert fitting(demo, options, LONG, machine, needed) == {}
    less = fitting(demo, options, LONG, machine, needed - 1)
    assert less == {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}
    smallest = fitting(demo, options, LONG, machine, 3 * 10**9)
    assert smallest["gradient_checkpointing"] == "on"
    assert fitting(demo, options, LONG, machine, 2 * 10**9 // 8) is None


@pytest.mark.parametrize("gpu", [0, 4 * GIB])
def test_a_training_that_does_not_fit_is_refused_with_settings_that_do(gpu, tmp_path, monkeypatch, demo):
    def refusal(**options):
        recipe = parse_recipe({"base_model": "demo", "stages": [{"stage": "finetune", "dataset": "demo", **options}]})
        needed = estimate(recipe, demo, tmp_path, survey=seen(1000, 1_500_000, 2048))
        try:
            check_room(needed, demo, this_machine(tmp_path, Settings()))
        except HardwareError as e:
            return str(e)

    monkeypatch.setattr(local, "memory_bytes", lambda: 16 * GIB)
    monkeypatch.setattr(local, "gpu_bytes", lambda: gpu)
    large = LARGE | {"per_device_train_batch_size": 128}
    text = refusal(**large)
    assert ("its GPU has" if gpu else "this machine has") in text
    changed = named(text)
    assert changed["per_device_train_batch_size"] * changed["gradient_accumulation_steps"] == 256
    assert refusal(**large | changed) is None
    monkeypatch.setattr(local, "gpu_bytes" if gpu else "memory_bytes", lambda: GIB // 2)
    assert "choose a smaller model" in refusal(**large)


def test_running_out_of_memory_names_less_than_what_did_not_do(tiny_model):
    options = FinetuneOptions(**LARGE | {"per_device_train_batch_size": 64})
    text = str(out_of_memory(tiny_model, options, LONG))
    assert text.startswith("The training ran out of memory: by the estimate it fits with per_device_train_batch_size")
    facts, machine = inspect(str(tiny_model)), Machine(64 * GIB)
    less = training_cost(facts, options.model_copy(update=named(text)), LONG, machine)
    assert less.needed <= 0.8 * training_cost(facts, options, LONG, machine).needed


STARVED = """
import resource, sys
from pathlib import Path
import torch, trl.trainer.sft_trainer
from backend.errors import HardwareError
from backend.finetune.options import FinetuneOptions
from backend.finetune.rendering import Rendered
from backend.finetune.qlora import Rows, finetune
from backend.models.loading import load_tokenizer
from backend.progress import silent
torch.ones(64, 64) @ torch.ones(64, 64)
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 900_000_000,) * 2)
row = Rendered(0, [1 + i % 200 for i in range(1024)], [1 + i % 200 for i in range(1024)], True, 0)
options = FinetuneOptions(per_device_train_batch_size=256, max_length=1024, quantization="none")
base, output = map(Path, sys.argv[1:])
try:
    finetune(base, Rows([row] * 256, [], []), load_tokenizer(base), output, options, silent())
except HardwareError as e:
    sys.stdout.write(str(e))
"""


@pytest.mark.real
def test_a_training_whose_memory_runs_out_says_what_would_fit(tiny_model, tmp_path):
    output = tmp_path / "s" / "o"
    output.mkdir(parents=True)
    command = [sys.executable, "-c", STARVED, str(tiny_model), str(output)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "The training ran out of memory: by the estimate it fits with" in said.stdout, said.stderr[-2000:]
    assert named(said.stdout)["per_device_train_batch_size"] < 256


def test_the_measured_runs_stand_beside_their_estimates():
    found = json.loads((ROOT / "benchmarks" / "results" / "training_costs.json").read_text())
    facts = demo_facts()
    for run in found["runs"]:
        options = {name: run[name] for name in FinetuneOptions.model_fields if name in run}
        sizes = RowSizes(1000, 1000 * run["row_tokens"], run["row_tokens"])
        cost = training_cost(facts, FinetuneOptions(**options, max_steps=1), sizes, Machine(64 * GIB))
        assert cost.memory == pytest.approx(run["measured_bytes"], rel=0.1)
