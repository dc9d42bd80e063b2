"""Training on a tiny model: what is learned, what a kill costs, and what ends it early."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.artifacts.artifact import CHECKPOINTS
from backend.artifacts.training_log import read_course
from backend.data.samples import Message, Sample
from backend.disk import sha256
from backend.errors import JobError, SpecError
from backend.finetune.checkpoints import SEAL, checkpoints, is_sealed, newest_sealed, seal_checkpoint, step_of
from backend.finetune.costs import rows_of
from backend.finetune.options import FinetuneOptions
from backend.finetune.qlora import Rows, finetune
from backend.finetune.rendering import IGNORED, Renderer, stops_of
from backend.processes.child import ROOT
from backend.progress import Report, silent
from tests.support.training import rows, train


@pytest.mark.real
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_a_training_learns_and_leaves_an_adapter_that_peft_loads(tiny_model, tmp_path, quantization):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    events = []
    outcome = train(
        tiny_model, tmp_path / "s" / "o", Report(events.append), quantization=quantization, num_train_epochs=8.0
    )
    assert outcome.eval_loss < outcome.eval_loss_before
    assert (outcome.steps, outcome.stopped) == (outcome.planned_steps, None)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / "s" / "o")
    assert any("lora_B" in name and p.abs().sum() > 0 for name, p in model.named_parameters())
    lines = [json.loads(line) for line in (tmp_path / "s" / "o" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "learning_rate", "grad_norm"} <= {name for line in lines for name in line}
    assert [e["step"] for e in events if e["event"] == "metrics"] == [line["step"] for line in lines]


@pytest.mark.real
def test_rows_side_by_side_are_learned_as_they_are_alone(tiny_model, tmp_path):
    both = [
        train(tiny_model, tmp_path / name / "o", lora_dropout=0.0, attn_implementation=attention, quantization="none")
        for name, attention in (("one", "sdpa"), ("two", "eager"))
    ]
    padded = train(
        tiny_model, tmp_path / "three" / "o", lora_dropout=0.0, per_device_train_batch_size=1,
        gradient_accumulation_steps=2, quantization="none",
    )  # fmt: skip
    assert both[0].eval_loss == pytest.approx(both[1].eval_loss, abs=0.02)
    assert both[0].eval_loss == pytest.approx(padded.eval_loss, abs=0.02)


TRAININGS = """
import os, sys
from pathlib import Path
import trl.trainer.sft_trainer  # what takes long is done once for all of them
from backend.progress import Report
from tests.support.training import train
say = lambda *words: print(*words, flush=True)
for output in map(Path, map(str.strip, sys.stdin)):
    if os.fork() == 0:
        os.setsid()
        say("pid", os.getpid())
        report = Report(lambda event: say("step", event["step"]) if event["event"] == "metrics" else None)
        train(Path(sys.argv[1]), output, report, num_train_epochs=2.0, eval_steps=6)
        os._exit(0)
    say("ended", os.wait()[1])
"""


@pytest.fixture
def trainings(tiny_model):
    """Begin a training in a process group of its own; gives the lines that it says, until it has ended."""
    command = [sys.executable, "-c", TRAININGS, str(tiny_model)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}  # the same number always: sums are split among threads
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=env, text=True, **pipes) as server:

        def begin(output):
            server.stdin.write(f"{output}\n")
            server.stdin.flush()
            for line in iter(server.stdout.readline, ""):
                if said := re.fullmatch(r"(pid|step|ended) (\d+)\n", line):
                    yield said[1], int(said[2])
                    if said[1] == "ended":
                        return

        yield begin
        server.stdin.close()


@pytest.mark.real
def test_killed_at_ten_random_steps_a_training_goes_on_to_the_same_bytes(trainings, tmp_path):
    """Odd steps are killed somewhere in training and validating, even ones while their checkpoint is written."""
    assert [*trainings(tmp_path / "whole" / "o")][-1] == ("ended", 0)
    expected = sha256(tmp_path / "whole" / "o" / "adapter_model.safetensors")
    chance = random.Random(4)
    same, half_written = 0, 0
    for step in chance.sample(range(1, 12), 10):
        output = tmp_path / str(step) / "o"
        checkpoint = output / CHECKPOINTS / f"checkpoint-{step}"
        for word, number in trainings(output):
            if word == "pid":
                group = number
            if (word, number) == ("step", step):
                time.sleep(chance.uniform(0, 0.05))
                while step % 2 == 0 and not checkpoint.is_dir():
                    time.sleep(0.0005)
                os.killpg(group, signal.SIGKILL)
        assert (word, number) == ("ended", signal.SIGKILL)
        half_written += checkpoint.is_dir() and not is_sealed(checkpoint)
        assert newest_sealed(output / CHECKPOINTS) != checkpoint or is_sealed(checkpoint)
        left = newest_sealed(output / CHECKPOINTS)
        assert [*trainings(output)][-1] == ("ended", 0)
        assert read_course(output).resumed == (step_of(left) if left else None)  # the page says so
        same += sha256(output / "adapter_model.safetensors") == expected
    assert same == 10
    assert half_written > 0


def answer_of(base, rows, tokenizer, output):
    """Tune on rows that all have one answer, and give the tokens that the tuned model says to the first of them."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    output.mkdir(parents=True)
    given = {"num_train_epochs": 8.0, "per_device_train_batch_size": 8, "max_length": 256, "learning_rate": 2e-2}
    options = FinetuneOptions(**given, r=8, lora_dropout=0.0, quantization="none")
    finetune(base, Rows(rows, [], []), tokenizer, output, options, silent())
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), output)
    asked = sum(label == IGNORED for label in rows[0].labels[:-2])
    prompt = torch.tensor([rows[0].input_ids[:asked]])
    with torch.inference_mode():
        said = model.generate(input_ids=prompt, max_new_tokens=20, do_sample=False)
    return said[0, asked:].tolist()


@pytest.mark.real
def test_a_tuned_model_stops_after_its_answer_although_it_pads_with_the_token_that_ends_it(tiny_model, tmp_path):
    from transformers import AutoTokenizer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    tokenizer = AutoTokenizer.from_pretrained(tiny_model, pad_token="<|im_end|>")
    end = tokenizer.eos_token_id
    assert tokenizer.pad_token_id == end
    renderer = Renderer(tokenizer, "auto", 256, stops_of(tokenizer, ()))
    asked = [Message("user", f"Is {'not ' * (i % 4)}{i} a number?") for i in range(16)]
    made = [renderer.render(Sample(i, (each, Message("assistant", "Yes.")))) for i, each in enumerate(asked)]
    padded = DataCollatorForLanguageModeling(pad_token_id=end)([row._asdict() for row in made])
    assert len({len(row.input_ids) for row in made}) > 3
    assert ((padded["labels"] == end).sum(1) == 1).all()
    answer = tokenizer("Yes.")["input_ids"]
    assert answer_of(tiny_model, made, tokenizer, tmp_path / "s" / "o") == [*answer, end]
    masked = [row._replace(labels=[IGNORED if label == end else label for label in row.labels]) for row in made]
    endless = answer_of(tiny_model, masked, tokenizer, tmp_path / "t" / "o")
    assert endless[: len(answer)] == answer
    assert endless[len(answer)] != end


def test_only_whole_checkpoints_count(tmp_path):
    for step in (2, 4, 10, 12):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "optimizer.pt").write_bytes(bytes([step]) * 100)
        if step != 12:
            seal_checkpoint(folder)
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{n}" for n in (2, 4, 10, 12)]
    assert newest_sealed(tmp_path).name == "checkpoint-10"
    (tmp_path / "checkpoint-10" / "optimizer.pt").write_bytes(b"cut")
    assert newest_sealed(tmp_path).name == "checkpoint-4"
    (tmp_path / "checkpoint-4" / "optimizer.pt").unlink()
    assert newest_sealed(tmp_path).name == "checkpoint-2"
    (tmp_path / "checkpoint-2" / SEAL).write_text("{")
    assert newest_sealed(tmp_path) is None


@pytest.mark.real
def test_stopping_keeps_what_is_learned(tiny_model, tmp_path):
    (tmp_path / "stop").touch()
    outcome = train(tiny_model, tmp_path / "stages" / "o")
    assert outcome.steps == 1 < outcome.planned_steps
    assert "Stopped" in outcome.stopped
    assert load_file(tmp_path / "stages" / "o" / "adapter_model.safetensors")


@pytest.mark.real
def test_a_loss_that_is_no_number_ends_the_run_and_keeps_what_was_good(tiny_model, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in tiny_model.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    weights = load_file(damaged / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], math.nan)
    save_file(weights, damaged / "model.safetensors", {"format": "pt"})
    with pytest.raises(JobError, match="no number any more at step 5"):
        train(damaged, tmp_path / "s" / "o")


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        ({"split": "train[:240]", "validation_size": 40}, 200),
        ({"split": "train[100:300]", "validation_size": 0.1}, 180),
        ({"split": "train[10%:]"}, 1000),
        ({}, 1000),
    ],
)
def test_an_estimate_counts_the_rows_that_the_split_names(given, rows):
    assert rows_of(FinetuneOptions(**given)) == rows


def test_nothing_to_learn_is_said(tiny_model, tmp_path):
    _, tokenizer = rows(tiny_model, 5)
    with pytest.raises(SpecError, match="No row is left"):
        finetune(tiny_model, Rows([], [], []), tokenizer, tmp_path, FinetuneOptions(), silent())


@pytest.mark.real
@pytest.mark.parametrize("padding_free", [True, False])
def test_the_loss_of_learned_tokens_alone_is_that_of_all_logits(tiny_model, tmp_path, padding_free):
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    from backend.finetune.sft_trainer import Tuner

    data, tokenizer = rows(tiny_model)
    columns = [{"input_ids": row.input_ids, "labels": row.labels} for row in data.train]
    tuner = Tuner(
        model=AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32),
        args=SFTConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, padding_free=padding_free, report_to=[],
            max_length=None, dataset_kwargs={"skip_prepare_dataset": True}, gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(columns),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False),
    )  # fmt: skip
    batch = next(iter(tuner.get_train_dataloader()))
    with torch.no_grad():
        logits = tuner.model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    learned = int((batch["labels"][:, 1:] != -100).sum())

    loss = tuner.compute_loss(tuner.model, dict(batch))
    loss.backward()
    gradients = [p.grad.clone() for p in tuner.model.parameters() if p.requires_grad]
    tuner.model.zero_grad()
    SFTTrainer.compute_loss(tuner, tuner.model, dict(batch)).backward()

    assert learned < batch["labels"].numel() / 2
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    halved = tuner.compute_loss(tuner.model, dict(batch), num_items_in_batch=2 * learned)
    assert float(halved) == pytest.approx(float(expected) / 2, rel=1e-5)
    theirs = [p.grad for p in tuner.model.parameters() if p.requires_grad]
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(gradients, theirs, strict=True))
    assert max(float(g.abs().max()) for g in gradients) > 1e-4


@pytest.mark.real
@pytest.mark.parametrize("given", [{"max_steps": 3}, {"num_train_epochs": 1.0}, {"max_steps": 5, "save_steps": 4}])
def test_a_training_that_failed_at_its_end_is_not_trained_again(tiny_model, tmp_path, given):
    output = tmp_path / "s" / "o"
    first = train(tiny_model, output, **given)
    made = sha256(output / "adapter_model.safetensors")
    (output / "adapter_model.safetensors").unlink()  # what came after the last checkpoint is lost
    events = []
    again = train(tiny_model, output, Report(events.append), **given)
    assert sha256(output / "adapter_model.safetensors") == made
    assert again._replace(train_loss=0.0) == first._replace(train_loss=0.0)
    assert again.train_loss == pytest.approx(first.train_loss, rel=1e-3)
    assert f"Going on after step {first.steps}." in [event.get("text") for event in events]


@pytest.mark.real
def test_the_mean_loss_counts_the_steps_before_a_kill(tiny_model, tmp_path):
    output = tmp_path / "s" / "o"
    first = train(tiny_model, output, num_train_epochs=2.0)
    for checkpoint in checkpoints(output / CHECKPOINTS)[1:]:
        shutil.rmtree(checkpoint)
    left = newest_sealed(output / CHECKPOINTS)
    assert 0 < step_of(left) < first.steps
    assert train(tiny_model, output, num_train_epochs=2.0).train_loss == pytest.approx(first.train_loss, rel=1e-3)


@pytest.mark.parametrize(("given", "refused"), [
    ({"load_best_model_at_end": True, "save_steps": 3, "eval_steps": 2}, True),
    ({"load_best_model_at_end": True, "save_steps": 4, "eval_steps": 2}, False),
    ({"load_best_model_at_end": False, "save_steps": 3, "eval_steps": 2}, False),
    ({"save_steps": 3, "eval_steps": 2}, False),  # nobody asked for the best: it is said where it cannot be kept
])  # fmt: skip
def test_the_best_checkpoint_that_was_asked_for_can_be_kept(given, refused):
    with pytest.raises(ValueError, match="multiple of eval_steps") if refused else nullcontext():
        FinetuneOptions(**given)


@pytest.mark.real
@pytest.mark.parametrize(("save", "best"), [(3, False), (4, True)])
def test_beside_save_steps_the_best_is_kept_or_it_is_said_why_not(tiny_model, tmp_path, save, best):
    events = []
    report = Report(events.append)
    rising = {"learning_rate": 0.9, "num_train_epochs": 3.0, "lr_scheduler_type": "constant"}
    outcome = train(tiny_model, tmp_path / "s" / "o", report, save_steps=save, **rising)
    assert any("not the best" in text for text in report.warnings) == (not best)
    measured = [event["eval_loss"] for event in events if event.get("eval_loss") is not None]
    assert (outcome.eval_loss == pytest.approx(min(measured[1:-1]), rel=1e-3)) == best
