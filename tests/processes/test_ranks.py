"""Several processes that train as one: what they learn, what stops them, and that nothing of them is left."""

import json
import os
import signal
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from backend.artifacts.sealing import open_artifact
from backend.errors import JobError
from backend.finetune.costs import steps_of
from backend.finetune.options import FinetuneOptions
from backend.jobs.foreground import finished
from backend.processes.child import ROOT
from backend.processes.marks import marked, marker_prefix
from backend.processes.ranks import processes
from backend.recipes import parse_recipe
from backend.settings import Settings
from backend.stages.work import stage_folder
from tests.support.processes import linux, until

ROWS = [{"prompt": f"What is {i}?", "completion": f"It is {i * i}."} for i in range(20)]
SAME = {
    "bnb_4bit_compute_dtype": "float32",
    "max_length": 64,
    "lora_dropout": 0.0,
    "quantization": "none",
    "validation_size": 4,
    "learning_rate": 5e-3,
    "r": 4,
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def recipe_of(model, rows, **options):
    stage = {"stage": "finetune", "dataset": str(rows), **SAME, **options}
    return parse_recipe({"base_model": str(model), "stages": [stage]}, paths=True)


def trained(recipe, data, monkeypatch, number, listen=print):
    """Train in so many processes; give the artifact, the metrics and the adapter's weights."""
    monkeypatch.setenv("WEIGHTSMITH_NUM_PROCESSES", str(number))
    with finished(recipe, None, listen, Settings(data=data).writable()) as job:
        folder = stage_folder(job, recipe, 1)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return open_artifact(folder), lines, load_file(folder / "adapter_model.safetensors")


@pytest.mark.real
def test_two_processes_reach_the_loss_of_one(tiny_model, rows, tmp_path, monkeypatch):
    alone, one, first = trained(
        recipe_of(tiny_model, rows, per_device_train_batch_size=4), tmp_path / "one", monkeypatch, 1
    )
    events = []
    together, two, second = trained(
        recipe_of(tiny_model, rows, per_device_train_batch_size=2), tmp_path / "two", monkeypatch, 2, events.append
    )
    assert "Training in 2 processes." in [e["text"] for e in events if e["event"] == "log"]
    assert together.training.steps == alone.training.steps == together.training.planned_steps == 12
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (one, two)]
    assert len(losses[0]) == 12
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)  # the order of sums
    assert together.training.eval_loss == pytest.approx(alone.training.eval_loss, rel=1e-3)
    assert together.training.eval_loss < together.training.eval_loss_before - 0.1
    difference = sum(float((first[name] - second[name]).square().sum()) for name in first)
    assert difference < 1e-4 * sum(float(tensor.square().sum()) for tensor in first.values())
    assert [e["done"] for e in events if e["event"] == "progress" and e["phase"] == "training"][-1] == 12


@pytest.mark.real
def test_all_processes_stop_together_and_keep_what_is_learned(tiny_model, rows, tmp_path, monkeypatch):
    recipe = recipe_of(tiny_model, rows, per_device_train_batch_size=2, num_train_epochs=200)

    def stop(event):
        if event["event"] == "metrics":
            for job in tmp_path.glob("data/runs/*"):
                (job / "stop").touch()

    artifact, _, weights = trained(recipe, tmp_path / "data", monkeypatch, 2, stop)
    assert artifact.training.steps < artifact.training.planned_steps == 800
    assert artifact.training.stopped == "Stopped by its user."
    assert weights


@pytest.mark.real
def test_a_process_that_fails_says_why_and_ends_the_others(tiny_model, rows, tmp_path, monkeypatch):
    recipe = recipe_of(tiny_model, rows, max_length=16, chat_template="auto")
    with pytest.raises(JobError, match="No row is left to learn from"):
        trained(recipe, tmp_path / "data", monkeypatch, 2)
    until(lambda: not any(list(marked(marker_prefix(job))) for job in tmp_path.glob("data/runs/*")), 10)


@linux
@pytest.mark.real
def test_killed_processes_start_again_once_and_whoever_is_killed_none_stays(tiny_model, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("WEIGHTSMITH_NUM_PROCESSES", "2")
    command = [sys.executable, "-m", "backend", "finetune", str(tiny_model), "--dataset", str(rows)]
    command += ["--num-train-epochs", "500", "--max-length", "64", "--output", str(tmp_path / "out")]

    def running(word):
        found = [pid for job in tmp_path.glob("data/runs/*") for pid in marked(marker_prefix(job))]
        return [pid for pid in found if word in (ROOT / f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]

    def learning():
        """Wait until both processes run and a checkpoint is sealed; give them and their launcher."""
        sealed = "data/runs/*/stages/*/checkpoints/*/sealed.json"
        until(lambda: list(tmp_path.glob(sealed)) and len(running(b"rank")) >= 2, 150)
        [launcher] = [pid for pid in running(b"accelerate.commands.launch") if os.getsid(pid) != pid]
        return set(running(b"rank")), launcher

    app = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    first, launcher = learning()
    os.kill(launcher, signal.SIGKILL)
    until(lambda: not first & set(running(b"rank")), 10)
    second, launcher = learning()
    assert not first & second
    os.kill(launcher, signal.SIGKILL)
    assert "2 times" in app.communicate(timeout=150)[1]
    assert app.returncode == 1
    assert not running(b"rank")
    app = subprocess.Popen(command, cwd=ROOT)
    learning()
    app.kill()
    until(lambda: not running(b"rank"), 10)
    assert app.wait(20) != 0
    assert not running(b"--multi_gpu")


def test_a_step_counts_the_rows_of_every_process():
    options = FinetuneOptions(num_train_epochs=1.5, per_device_train_batch_size=2, gradient_accumulation_steps=3)
    assert [steps_of(options, 50, number) for number in (1, 2, 4)] == [14, 8, 5]
    assert steps_of(options.model_copy(update={"max_steps": 6}), 50, 2) == 6


def test_accelerates_own_configuration_says_how_many_there_are(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("compute_environment: LOCAL_MACHINE\nnum_machines: 2\nnum_processes: 16\n")
    assert processes(Settings(accelerate_config=path, num_processes=3)) == 16
    assert processes(Settings(num_processes=3)) == 3
