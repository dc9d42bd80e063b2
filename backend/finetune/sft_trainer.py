"""TRL's SFTTrainer with checkpoints that are sealed, a stop that keeps what is learned, and a guard against NaN.

Imports torch and trl: only training.py imports this module, in the worker.
"""

import inspect
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from trl.trainer.sft_trainer import SFTTrainer

from backend.artifacts.artifact import METRICS, SAMPLES
from backend.artifacts.training_log import of_steps
from backend.disk import JOURNAL, append_line, write_whole
from backend.finetune.checkpoints import LOSSES, forget, seal_checkpoint
from backend.finetune.costs import LOGITS
from backend.finetune.rendering import IGNORED
from backend.progress import Report

MAX_NOT_FINITE = 5
"""Steps in a row whose loss may be no number before the run is stopped."""

_NAMES = ("loss", "eval_loss", "learning_rate", "grad_norm", "mean_token_accuracy", "eval_mean_token_accuracy")


class Tuner(SFTTrainer):
    """Trains, and leaves nothing behind that is half written."""

    not_finite = 0
    """Steps in a row whose loss was no finite number."""

    learned_tokens = 0
    """Tokens that this process has seen, padding not counted."""

    losses: float | None = 0.0
    """Sum of the losses of all steps, those before a checkpoint that it goes on from included; None: not known."""

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train for an epoch; not where a checkpoint was gone on from that lies behind the last step already."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Do a step; count those whose loss is no number."""
        loss: Any = super().training_step(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.not_finite = 0 if math.isfinite(float(loss)) else self.not_finite + 1
        if self.losses is not None and not self.not_finite:
            self.losses += float(loss)
        inputs = args[1]
        mask = inputs.get("attention_mask")
        self.learned_tokens += int(inputs["input_ids"].numel() if mask is None else mask.sum())
        return loss

    def gathered(self, *numbers: int) -> torch.Tensor:
        """Return whole numbers of every process, [processes, numbers]; each of them must call this."""
        mine = torch.tensor([numbers], device=self.accelerator.device)
        everyone: torch.Tensor = self.accelerator.gather(mine)
        return everyone

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean cross entropy of the tokens that count, in nats; only these go through the model's head."""
        targets = inputs["labels"][:, 1:]
        kept = (targets != IGNORED).any(0).nonzero()[:, 0]
        vocabulary = self.accelerator.unwrap_model(model).config.get_text_config().vocab_size
        # Several processes gather the same figures only if all of them go the same way, whatever their batches hold.
        alone = self.accelerator.num_processes == 1 and not return_outputs and _keeps_some(self.model)
        if not alone or not 0 < len(targets) * len(kept) * vocabulary <= LOGITS:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        seen = {name: value for name, value in inputs.items() if name != "labels"}
        logits = model(**seen, use_cache=False, logits_to_keep=kept).logits.float()
        counted = targets[:, kept]
        total = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), counted.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        right, there = (logits.argmax(-1) == counted).sum(), (counted != IGNORED).sum()
        self._metrics["train" if self.model.training else "eval"]["mean_token_accuracy"].append(float(right / there))
        return total / (there if num_items_in_batch is None else num_items_in_batch)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.not_finite:
            return  # what is in memory is damaged: the last checkpoint stays the newest
        Trainer._save_checkpoint(self, model, trial)  # TRL's own would write a card with paths of this machine
        self.accelerator.wait_for_everyone()  # each process has put the state of its random numbers there
        if self.args.should_save:
            folder = Path(self.args.output_dir)
            (folder.parent / JOURNAL).touch()
            checkpoint = folder / f"checkpoint-{self.state.global_step}"
            write_whole(checkpoint / LOSSES, json.dumps(self.losses))
            seal_checkpoint(checkpoint)
            best = self.state.best_model_checkpoint
            forget(folder, Path(best) if best else None)


class Watch(TrainerCallback):  # type: ignore[misc]
    """Tells how the training goes, and ends it when somebody asks or when nothing can come of it.

    Args:
        report: Receives every figure.
        folder: metrics.jsonl and samples.jsonl are written here.
        stop: Ends the training when this file is there.
        answers: Gives the model's answers to some prompts.
    """

    def __init__(self, report: Report, folder: Path, stop: Path, answers: Callable[[], Sequence[Any]]) -> None:
        self._report = report
        self._folder = folder
        self._stop = stop
        self._answers = answers
        self._tuner: Tuner | None = None
        self._started = 0.0
        self._tokens = 0  # of all processes
        self.stopped = False

    def watch(self, tuner: Tuner) -> None:
        """Say whom to watch."""
        self._tuner = tuner

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to measure time; what lies in the metrics behind the checkpoint is forgotten."""
        self._started = time.monotonic()
        if not state.is_world_process_zero:
            return
        for name in (METRICS, SAMPLES):
            kept = [line for line in of_steps(self._folder / name) if line["step"] <= state.global_step]
            write_whole(self._folder / name, "".join(json.dumps(line) + "\n" for line in kept))
        if state.global_step:
            _append(self._folder / METRICS, {"step": state.global_step, "resumed": True})
        first = "measuring before the training" if args.eval_on_start else "training"
        phase = f"going on after step {state.global_step}" if state.global_step else first
        self._report.progress(phase, state.global_step, state.max_steps, "steps")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop where it is asked for, or where the loss is no number any more: all processes, or none."""
        self._report.progress("training", state.global_step, state.max_steps, "steps")
        assert self._tuner
        everyone = self._tuner.gathered(self._tuner.not_finite, self._stop.exists(), self._tuner.learned_tokens)
        self._tuner.not_finite, asked = everyone[:, :2].amax(0).tolist()
        self._tokens = int(everyone[:, 2].sum())
        if self._tuner.not_finite >= MAX_NOT_FINITE:
            control.should_training_stop = True
        elif asked:
            self.stopped = control.should_training_stop = control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        """Write one line of figures."""
        found = {name: logs[name] for name in _NAMES if isinstance(logs.get(name), int | float)}
        if not found or not state.is_world_process_zero:
            return
        seconds = time.monotonic() - self._started
        line = {"step": state.global_step, "epoch": round(state.epoch or 0, 4), **found}
        line["tokens_per_second"] = round(self._tokens / seconds, 1) if seconds else 0.0
        line["memory_bytes"] = memory_in_use()
        _append(self._folder / METRICS, line)
        self._report.metrics(line)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask the model for answers."""
        if not state.is_world_process_zero:
            return
        for prompt, answer in self._answers():
            line = {"step": state.global_step, "prompt": prompt, "answer": answer}
            _append(self._folder / SAMPLES, line)


def _keeps_some(model: Any) -> bool:
    """Return whether a model can be asked for the logits of some tokens alone."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(type(base).forward).parameters


def memory_in_use() -> int:
    """Return the bytes that the training holds: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def _append(path: Path, line: dict[str, Any]) -> None:
    append_line(path, {k: None if v != v else v for k, v in line.items()})  # JSON has no NaN
