"""How much a model got worse: perplexity, KL divergence, agreement, flips and answers against its reference.

Reference and result read the same windows in lockstep and only running sums are kept, so memory does not grow with the
text. KL(reference ‖ result) per token in nats; perplexity is exp(mean negative log-likelihood) over non-overlapping
windows, the convention of the GPTQ paper (arXiv 2210.17323), each behind the token that the tokenizer puts before every
text, where it has one: Gemma without it guesses. A flip is an answer that was right and is wrong or the
other way round (arXiv 2407.09141); the answer is the next token here.
"""

import math
import re
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from backend.artifacts.artifact import Answer, Intervals, Metrics
from backend.data.options import RowsOptions, named
from backend.errors import SpecError
from backend.intervals import intervals
from backend.model_folder import read_config
from backend.models.chat_template import chat_text
from backend.models.config import context_length
from backend.models.loading import check_embedded, load_tokenizer, pad_within, window_length
from backend.models.tokens import around
from backend.options import ADVANCED, Frozen
from backend.progress import Report
from backend.quantize.engine_rounding import round_as_engines
from backend.quantize.packed import is_unpacked, load
from backend.stage import Stage

ROWS = 256  # tokens whose logits are compared at a time: [256, 50000] in float32 is 51 MB

PROMPTS = (
    "What is the capital of France?",
    "Explain in one sentence why the sky is blue.",
    "Write a Python function that adds two numbers.",
    "Translate into Spanish: Good morning, how are you?",
    "What is 17 plus 25?",
    "Name three primary colors.",
    "Who wrote Romeo and Juliet?",
    "Is a tomato a fruit or a vegetable? Answer in one word.",
)
ANSWER_TOKENS = 32
ANSWER_LETTERS = 240  # of an answer that are kept
TIMED_TOKENS = 16  # decoded alone, one after the other


class EvaluateOptions(Stage):
    """What is measured, on which text."""

    NAMES = ("text", "rows", "tasks")
    gpu = True

    stage: Literal["evaluate"] = "evaluate"
    text: str | None = Field(
        None,
        description="A plain text file to measure on, instead of a data set.",
        json_schema_extra={"file": True},
    )
    dataset: str | None = Field(
        None,
        description="A Hub data set as id or id:config:split. Empty: WikiText-2, or the embedded English prose where"
        " there is no network.",
    )
    max_seq_length: int = Field(
        2048, ge=16, le=131072, description="Tokens a window. Figures with other windows cannot be compared."
    )
    num_samples: int = Field(
        8, ge=1, le=4096, description="Windows at most. More: a steadier figure, and as much more time."
    )
    answers: bool = Field(
        True,
        description=f"Have both models answer {len(PROMPTS)} prompts too, and time how fast they write: in the engine"
        " that serves the result.",
    )

    rows: Annotated[RowsOptions | None, BeforeValidator(named)] = Field(
        None,
        description="Rows whose answers are compared too: a file of rows, or a Hub data set. Empty: those that the"
        " recipe's own training kept out (validation_size), where there are any.",
        json_schema_extra={"file": True},
    )
    num_rows: int = Field(
        40, ge=0, le=10_000, description="Rows that are answered at most; 0: none. More: surer, and as much more time."
    )

    tasks: tuple[str, ...] = Field(
        (),
        description="Benchmarks of lm-eval that both models take too, such as arc_easy; on your own machine also a"
        " task's YAML file. They take an extra package: pip install lm-eval.",
        json_schema_extra=ADVANCED,
    )
    num_fewshot: int | None = Field(
        None, ge=0, le=100, description="Solved examples before each one of a task.", json_schema_extra=ADVANCED
    )
    limit: int | None = Field(
        None, ge=1, description="Examples of each task at most. Empty: all.", json_schema_extra=ADVANCED
    )
    apply_chat_template: bool = Field(
        False, description="Ask the tasks through the model's chat template.", json_schema_extra=ADVANCED
    )

    @field_validator("tasks")
    @classmethod
    def _tasks(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        context = info.context or {}
        if context.get("stored"):
            return value
        return tuple(_task(text, bool(context.get("paths")), context.get("folder") or Path()) for text in value)

    def files(self) -> dict[str, Path]:
        """Return its files; that of the text may be named relative to a recipe file."""
        return super().files() | ({"text": Path(self.text)} if self.text else {})

    @model_validator(mode="after")
    def _one_source(self) -> "EvaluateOptions":
        if self.text and self.dataset:
            raise ValueError("dataset: excludes text: give one of them")
        return self


def _task(text: str, paths: bool, folder: Path) -> str:
    """Return the name of a task, or the absolute path of its file.

    Args:
        text: What was typed.
        paths: Whether a file of this machine may be meant: it can name functions that are run.
        folder: What a relative path starts from.
    """
    if not text.endswith((".yaml", ".yml")):
        if not _TASK.fullmatch(text):
            raise ValueError(f"{text[:80]!r} is not a task's name: `lm-eval ls tasks` lists them")
        return text
    if not paths:
        raise ValueError(f"{text[:80]!r} is a file of this machine: name a task of lm-eval")
    path = (folder / Path(text).expanduser()).resolve()
    if not path.is_file():
        raise ValueError(f"{text[:80]!r} is not a file: check the path")
    return str(path)


_TASK = re.compile(r"\w[\w.+-]*")


class Text(Frozen):
    """The text that is measured on; `name` stands in the card."""

    name: str
    content: str = Field(repr=False)


def measure(reference: Path, result: Path, text: Text, options: EvaluateOptions, report: Report) -> Metrics:
    """Compare a model folder with its reference on a text, window by window.

    Args:
        reference: Folder of the model that the result was made from; its tokenizer is used for both.
        result: Folder of the model that is measured; the vocabulary must be the same.
        text: What calibration has not seen.
        options: Windows: their length and number.
        report: Receives the tokens measured.

    Raises:
        SpecError: The text is too short, or the two models do not have the same vocabulary.
    """
    import torch

    before, windows = _windows(reference, text, options, report)
    length, first = len(windows[0]), max(len(before), 1)  # nobody guesses the first token, nor what always stands there
    models = _load(reference, result, report)
    rounded = round_as_engines(models[1], result)
    vocabulary = models[0].config.get_text_config().vocab_size
    if (largest := max(map(max, windows))) >= vocabulary:
        check_embedded(load_tokenizer(reference), largest, vocabulary, reference.name)
    sums = _Sums(len(windows))
    total = len(windows) * (length - first)
    report.progress("measuring", 0, total, "tokens")
    with torch.inference_mode():
        for i, window in enumerate(windows):
            tokens = torch.tensor([window], device=models[0].device)
            logits = [model(input_ids=tokens, use_cache=False).logits[0, first - 1 : -1] for model in models]
            for start in range(0, length - first, ROWS):
                rows = [part[start : start + ROWS].float() for part in logits]
                sums.add(i, rows[0], rows[1], tokens[0, first + start : first + start + ROWS])
            del logits, rows  # the next window's come before these would go
            report.progress("measuring", (i + 1) * (length - first), total, "tokens")
    metrics = sums.metrics(text.name, _convention(len(windows), length, len(before), rounded))
    if not options.answers:
        return metrics
    answers = _answers(reference, models, report)
    if is_unpacked(result):  # nobody serves it so
        answers |= {"tokens_per_second": None, "reference_tokens_per_second": None}
    return metrics.model_copy(update=answers)


def _load(reference: Path, result: Path, report: Report) -> list[Any]:
    """Load the reference and the result, which must have one vocabulary."""
    models = []
    for folder, what in ((reference, "reference"), (result, "model")):
        report.log(f"Loading the {what} '{folder.name}'.")
        models.append(load(folder, report))
    vocabularies = [model.config.get_text_config().vocab_size for model in models]
    if vocabularies[0] != vocabularies[1]:
        raise SpecError(
            f"'{result.name}' has a vocabulary of {vocabularies[1]} tokens, its reference {vocabularies[0]}: give the"
            " model that it was made from as the reference."
        )
    return models


def _answers(reference: Path, models: list[Any], report: Report) -> dict[str, Any]:
    """Have both models answer the prompts, greedily, and time each of them on one."""
    tokenizer = load_tokenizer(reference)
    tokenizer.padding_side = "left"
    pad_within(tokenizer, models[0].config.get_text_config().vocab_size)
    asked, talks = _asked(tokenizer, report)
    found, speeds = [], []
    batch = tokenizer(asked, return_tensors="pt", padding=True, add_special_tokens=not talks)
    needed, limit = batch["input_ids"].shape[1] + ANSWER_TOKENS, context_length(read_config(reference))
    if limit and needed > limit:
        report.log(f"Prompts with their answers have {needed} tokens, and the model reads {limit}: none is asked.")
        return {}
    for done, model in enumerate(models):
        report.progress("asking", done, len(models), "models")
        batch = batch.to(model.device)
        written = _write(model, batch, ANSWER_TOKENS)
        found.append(tokenizer.batch_decode(written, skip_special_tokens=True))
        alone = tokenizer(asked[:1], return_tensors="pt", add_special_tokens=not talks)
        speeds.append(writing_speed(model, alone.to(model.device)))
    pairs = zip(PROMPTS, *found, strict=True)
    return {
        "answers": tuple(Answer(prompt=p, reference=_shown(a), result=_shown(b)) for p, a, b in pairs),
        "reference_tokens_per_second": round(speeds[0], 2),
        "tokens_per_second": round(speeds[1], 2),
    }


def _asked(tokenizer: Any, report: Report) -> tuple[list[str], bool]:
    """Return the prompts as the model reads them, and whether they went through its chat template."""
    if tokenizer.chat_template:
        try:
            return [chat_text(tokenizer, [{"role": "user", "content": p}], prompt=True) for p in PROMPTS], True
        except SpecError as e:  # what was measured before is kept
            report.warn(f"{e} The prompts were asked without it.")
    return [f"Question: {prompt}\nAnswer:" for prompt in PROMPTS], False


def _shown(answer: str) -> str:
    """Cut what would not fit beside others."""
    text = answer.strip()
    return text if len(text) <= ANSWER_LETTERS else text[: ANSWER_LETTERS - 1] + "…"


def writing_speed(model: Any, prompt: Any) -> float:
    """Return the tokens a second that a model writes after its first.

    Args:
        model: As transformers loads it.
        prompt: What its tokenizer gave, [1, tokens].
    """
    times = list[float]()

    def look_at_the_clock(ids: Any, scores: Any) -> Any:
        times.append(time.monotonic())
        return scores

    _write(model, prompt, 1)  # what is set up once
    count = TIMED_TOKENS + 1
    _write(model, prompt, count, min_new_tokens=count, logits_processor=[look_at_the_clock])
    return TIMED_TOKENS / (times[-1] - times[0])


def _write(model: Any, batch: Any, most: int, **options: Any) -> Any:
    """Return the tokens that a model writes, [prompts, tokens]."""
    out = model.generate(**batch, max_new_tokens=most, do_sample=False, **options)
    return out[:, batch["input_ids"].shape[1] :]


def _windows(
    reference: Path, text: Text, options: EvaluateOptions, report: Report
) -> tuple[list[int], list[list[int]]]:
    """Cut the text into non-overlapping windows of token ids, [windows, length]; a last, shorter one is left out.

    Returns:
        What every window begins with; the windows.
    """
    tokenizer = load_tokenizer(reference)
    before = around(tokenizer).before
    ids: list[int] = tokenizer(text.content, add_special_tokens=False, verbose=False)["input_ids"]
    length = window_length(reference, options.max_seq_length, report)
    step = length - len(before)
    if len(ids) < step:
        raise SpecError(
            f"'{text.name}' has {len(ids)} tokens, fewer than one window of {step}: give a longer text, or a smaller"
            " max_seq_length."
        )
    starts = range(0, len(ids) - step + 1, step)
    return before, [[*before, *ids[start : start + step]] for start in starts][: options.num_samples]


def _convention(windows: int, length: int, before: int, rounded: str) -> str:
    """Say how it was measured, so that others can measure the same."""
    begun = f", each begun with the {before} that the tokenizer puts before every text" if before else ""
    said = f"{windows} non-overlapping windows of {length} tokens{begun}, the text tokenized once"
    return f"{said}, {rounded}" if rounded else said


class _Sums:
    """Running sums over the tokens of each window, and a histogram of the KL with 230 bins a decade (1 % wide)."""

    LOW = -10.0  # log10 of nats; below it the two are equal for any purpose
    HIGH = 3.0
    BINS = 2990

    def __init__(self, windows: int) -> None:
        import torch

        self.windows = np.zeros((windows, 6))  # tokens, KL, log-likelihoods of both, agreed, flipped
        self.histogram = torch.zeros(self.BINS, dtype=torch.int64)

    def add(self, window: int, reference: Any, result: Any, target: Any) -> None:
        """Add tokens: logits [tokens, vocabulary] in float32 of both, and the true next token ids [tokens]."""
        import torch

        p, q = reference.log_softmax(-1), result.log_softmax(-1)
        if not torch.isfinite(p).all():
            raise SpecError("The reference gives numbers that are not finite: it is damaged, choose another model.")
        kl = (p.exp() * (p - q)).sum(-1).clamp_(min=0).double()
        if not torch.isfinite(kl).all():
            raise SpecError("The result gives numbers that are not finite: the model is broken, do not publish it.")
        index = target[:, None]
        before, after = reference.argmax(-1), result.argmax(-1)
        self.windows[window] += (
            len(target),
            kl.sum().item(),
            q.gather(1, index).double().sum().item(),
            p.gather(1, index).double().sum().item(),
            int((before == after).sum()),
            int(((before == target) != (after == target)).sum()),
        )
        place = (kl.clamp(min=1e-300).log10() - self.LOW) / (self.HIGH - self.LOW) * self.BINS
        self.histogram += torch.bincount(place.long().clamp(0, self.BINS - 1).cpu(), minlength=self.BINS)

    def metrics(self, text: str, convention: str) -> Metrics:
        """Return the figures of all tokens so far."""
        count, kl, likelihood, reference, agreed, flipped = self.windows.sum(0).tolist()
        below = self.histogram.cumsum(0)
        place = int((below < math.ceil(0.99 * count)).sum())
        step = (self.HIGH - self.LOW) / self.BINS
        sure = intervals(self.windows, _figures)
        return Metrics(
            kl_mean=kl / count,
            kl_p99=0.0 if place == 0 else 10 ** (self.LOW + (place + 0.5) * step),
            top1_agreement=agreed / count,
            flips=flipped / count,
            perplexity=math.exp(-likelihood / count),
            reference_perplexity=math.exp(-reference / count),
            tokens=int(count),
            text=text,
            convention=convention,
            windows=len(self.windows),
            intervals=Intervals(**dict(zip(Intervals.model_fields, sure, strict=True))) if sure else None,
        )


def _figures(sums: Any) -> Any:
    """Return what there are intervals of, in the order of Intervals, from the sums of some windows, [draws, sums]."""
    count, kl, likelihood, reference, agreed, flipped = sums.T
    return np.stack([kl / count, agreed / count, flipped / count, np.expm1((reference - likelihood) / count)], 1)
