"""What a card says of a training and of the adapter that it made: rows, losses, and the base model that it goes on."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from backend.artifacts.artifact import ELSEWHERE, METRICS, Artifact, Training
from backend.artifacts.training_log import of_steps
from backend.disk import read_whole
from backend.publish.card.loss_plot import loss_plot
from backend.publish.card.markdown import literal
from backend.weights.codes import CODES

Measured = Literal["loss", "eval_loss"]

POINTS = 10
"""Rows of the table of losses at most."""

HUB = "https://huggingface.co"
DTYPES = ("bfloat16", "float16", "float32")

_HUB_ID = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BASE_NAME = re.compile(r"[\w.-]+", re.ASCII)


class Trained(NamedTuple):
    """A training, as the card's template reads it."""

    rows: str
    data: str  # the rows' data set, as Markdown
    learned: str | None  # what the validation loss did, in words
    facts: list[tuple[str, str]]
    losses: list[tuple[str, str, str]]  # step, loss, validation loss
    plot: str | None  # what the plot shows, in words


class AdapterUse(NamedTuple):
    """How an adapter is loaded on its base model, as the card's template reads it."""

    base: str  # the base model, as Markdown
    base_id: str
    revision: str | None
    quantization: list[str]  # arguments of BitsAndBytesConfig
    dtype: str | None
    held: str | None  # how the training held the base model, in words; None where nobody knows
    dequantized: str | None  # the 4 bits that left what it belongs merged into; None: the original weights
    stops: bool  # whether it brings its own generation_config.json


def hub_dataset(training: Training | None) -> str | None:
    """Return the Hub id of what was trained on; a file has no commit, and no id."""
    if training and _HUB_ID.fullmatch(training.dataset) and _COMMIT.fullmatch(training.dataset_revision or ""):
        return training.dataset
    return None


def needs_a_file(training: Training | None) -> bool:
    """Return whether who trains again must have the rows' file."""
    return training is not None and training.dataset != "demo" and hub_dataset(training) is None


def trained(folder: Path, training: Training | None) -> Trained | None:
    """Say how an adapter was trained.

    Args:
        folder: Of the artifact; its metrics.jsonl, if it lies there, gives the losses on the way.
        training: What its manifest records.
    """
    if training is None:
        return None
    return Trained(
        f"{training.rows:,}",
        _data(training),
        _learned(training),
        _facts(training),
        _losses(folder),
        _plotted(folder),
    )


def plot(folder: Path, training: Training | None) -> bytes | None:
    """Draw the losses on the way; None where there are too few for a line.

    Args:
        folder: As trained() takes it.
        training: As trained() takes it.
    """
    if training is None or _plotted(folder) is None:
        return None
    course = _course(folder)
    return loss_plot(course["loss"], course["eval_loss"])


def adapter_use(folder: Path, artifact: Artifact) -> AdapterUse | None:
    """Say how an adapter is loaded, on its base model as the training held it; None of other artifacts."""
    if artifact.kind != "adapter":
        return None
    options = artifact.options
    named = _named_base(folder)
    base = artifact.base_model
    dtype = next((name for name in DTYPES if name == options.get("bnb_4bit_compute_dtype")), None)
    arguments, held = _held(options, dtype) if artifact.stage != ELSEWHERE else ([], None)
    unnamed = "a local model" if held else "a model that its files do not name"
    return AdapterUse(
        base=f"[{base.split('/')[-1]}]({HUB}/{base})" if base else literal(named or unnamed),
        base_id=base or named or "the base model's folder",
        revision=artifact.revision if base else None,
        quantization=arguments,
        dtype=dtype,
        held=held,
        dequantized=str(options["quantization"]).upper() if "load_in_4bit=True" in arguments else None,
        stops=(folder / "generation_config.json").is_file(),
    )


def _held(options: Mapping[str, Any], dtype: str | None) -> tuple[list[str], str]:
    """Return the arguments of BitsAndBytesConfig that a training had, and the same in words."""
    quantization = options.get("quantization")
    if quantization in CODES:
        double = options.get("bnb_4bit_use_double_quant") is True
        arguments = ["load_in_4bit=True", f'bnb_4bit_quant_type="{quantization}"']
        arguments += [f"bnb_4bit_use_double_quant={double}"]
        arguments += [f"bnb_4bit_compute_dtype=torch.{dtype}"] if dtype else []
        return arguments, f"quantized to 4 bits ({quantization.upper()}{', double quantization' if double else ''})"
    if quantization == "int8":
        return ["load_in_8bit=True"], "quantized to 8 bits (LLM.int8())"
    return [], f"in {dtype}" if dtype else "unquantized"


def is_causal_lm(folder: Path) -> bool:
    """Return whether an adapter continues text."""
    return _adapter_config(folder).get("task_type") == "CAUSAL_LM"


def _named_base(folder: Path) -> str | None:
    name = _adapter_config(folder).get("base_model_name_or_path")
    return name if isinstance(name, str) and _BASE_NAME.fullmatch(name) else None


def _adapter_config(folder: Path) -> dict[str, Any]:
    return read_whole(folder / "adapter_config.json", dict[str, Any]) or {}


def _data(training: Training) -> str:
    if found := hub_dataset(training):
        return f"[{found}]({HUB}/datasets/{found})"
    if training.dataset == "demo":
        return (
            "Weightsmith's demo data set, questions and answers made from the docstrings of Python's standard library"
        )
    return f"{literal(training.dataset)}, a local file"


def _learned(training: Training) -> str | None:
    before, after = training.eval_loss_before, training.eval_loss
    if before is None or after is None:
        return None
    verb = "went"
    if after < before:
        verb = "fell"
    elif after > before:
        verb = "rose"
    return f"On the {training.validation_rows:,} validation rows the loss {verb} from {before:.3f} to **{after:.3f}**."


def _facts(training: Training) -> list[tuple[str, str]]:
    found, commit = hub_dataset(training), training.dataset_revision
    before, after = training.eval_loss_before, training.eval_loss
    share = f" ({training.learned_tokens / training.tokens:.0%})" if training.tokens else ""
    rows = [
        ("Data", _data(training)),
        ("Its commit", f"[{commit}]({HUB}/datasets/{found}/tree/{commit})" if found else None),
        ("Rows trained on", f"{training.rows:,}"),
        ("Validation rows", f"{training.validation_rows:,}" if training.validation_rows else "none"),
        ("Tokens of the rows trained on", f"{training.tokens:,}"),
        ("Of them counted for the loss", f"{training.learned_tokens:,}{share}"),
        ("Steps", f"{training.steps:,} of {training.planned_steps:,} planned"),
        ("Ended early", literal(training.stopped) if training.stopped else None),
        ("Loss, mean over the training (nats a token)", f"{training.train_loss:.3f}"),
        ("Validation loss before the training", f"{before:.3f}" if before is not None else None),
        ("Validation loss with the adapter", f"**{after:.3f}**" if after is not None else None),
    ]
    return [(name, value) for name, value in rows if value]


def _course(folder: Path) -> dict[Measured, list[tuple[int, float]]]:
    """Return the losses on the way, by step; of a step that is measured twice the first."""
    found: dict[Measured, dict[int, float]] = {"loss": {}, "eval_loss": {}}
    for line in of_steps(folder / METRICS):
        for name, points in found.items():
            value = line.get(name)
            if isinstance(value, int | float) and math.isfinite(value):
                # the last step is measured again with the checkpoint that is kept: that is among the facts
                points.setdefault(line["step"], value)
    return {name: sorted(points.items()) for name, points in found.items()}


def _plotted(folder: Path) -> str | None:
    """Say what the plot shows to who does not see it."""
    lines = [(name, points) for name, points in zip(("loss", "validation loss"), _course(folder).values(), strict=True)]
    said = [
        f"the {name} goes from {points[0][1]:.3f} at step {points[0][0]} to {points[-1][1]:.3f} at step {points[-1][0]}"
        for name, points in lines
        if len(points) > 1
    ]
    return f"Over the training {', and '.join(said)}." if said else None


def _losses(folder: Path) -> list[tuple[str, str, str]]:
    """Pick losses on the way, those with a validation loss where there are any, from the first to the last."""
    course = {name: dict(points) for name, points in _course(folder).items()}
    steps = list(course["eval_loss"] if len(course["eval_loss"]) > 1 else course["loss"])
    if len(steps) < 2:
        return []
    count = min(POINTS, len(steps))
    picked = [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]
    return [(str(at), _number(course["loss"].get(at)), _number(course["eval_loss"].get(at))) for at in picked]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
