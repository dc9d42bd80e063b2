"""Answering: what models make of rows that nobody trained on, one model in memory at a time.

The loss is that of the row's own answer, token by token. Where that is short the model is asked for it too, most likely
token by most likely token, and is right where it says the same but for blanks around it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backend.artifacts.compared import Answered, Change, Compared, ComparedRow, ModelName
from backend.errors import shortened
from backend.evaluate import ROWS
from backend.finetune.rendering import IGNORED
from backend.intervals import intervals
from backend.models.loading import pad_within
from backend.models.tokens import THOUGHT
from backend.progress import Report
from backend.quantize.packed import load

SHORT = 32
"""Tokens that an answer has at most which is asked for word for word."""

WRITTEN = 48
"""Tokens that a model writes at most: the rest of what it says is not needed to see what it says."""

TOGETHER, TOGETHER_TOKENS = 8, 4096
"""Prompts, and tokens of them, that are answered together at most."""

SHOWN, LETTERS = 5, 600
"""Rows that are shown at most, and letters of what each says."""


class Row(NamedTuple):
    """A row that is to be answered."""

    number: int  # in the data
    question: str  # what it asks last, for a person
    expected: str
    prompt: list[int]  # tokens up to the answer; none where it is no conversation
    ids: list[int]  # of all of it
    labels: list[int]  # those of the answer, else IGNORED

    @property
    def tokens(self) -> int:
        """Of the answer."""
        return sum(label != IGNORED for label in self.labels)

    @property
    def short(self) -> bool:
        """Whether the answer can be given word for word."""
        return bool(self.prompt) and self.tokens <= SHORT


class Rows(NamedTuple):
    """What models answer, and with what it was rendered."""

    data: str  # its name in a card
    held_out: bool
    rows: Sequence[Row]
    tokenizer: Any
    stops: Sequence[int]


class Said(NamedTuple):
    """What a model makes of rows."""

    losses: NDArray[np.float64]  # of each answer, in nats, [rows]
    texts: list[str | None]


def answered(folder: Path, rows: Rows, report: Report) -> Said:
    """Have a model answer rows; it is loaded for that, and gone when this returns.

    Args:
        folder: Of the model.
        rows: What it answers.
        report: Receives the rows.
    """
    import torch

    report.log(f"Loading '{folder.name}' to answer {len(rows.rows)} rows.")
    model = load(folder, report)
    losses = np.zeros(len(rows.rows))
    texts: list[str | None] = [None] * len(rows.rows)
    with torch.inference_mode():
        for i, row in enumerate(rows.rows):
            losses[i] = _loss(model, row)
            report.progress("answering", i + 1, 2 * len(rows.rows), "rows")
        done = len(rows.rows)
        for batch in _batches(rows.rows):
            for i, text in zip(batch, _texts(model, rows, batch), strict=True):
                texts[i] = text
            done += len(batch)
            report.progress("answering", done, 2 * len(rows.rows), "rows")
    return Said(losses, texts)


def _loss(model: Any, row: Row) -> float:
    """Return the loss of a row's answer, in nats."""
    import torch

    ids = torch.tensor([row.ids], device=model.device)
    labels = torch.tensor(row.labels[1:], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    places = (labels != IGNORED).nonzero()[:, 0]
    total = 0.0
    for start in range(0, len(places), ROWS):
        some = places[start : start + ROWS]
        scores = logits[some].float().log_softmax(-1)
        total -= scores.gather(1, labels[some][:, None]).double().sum().item()
    return total


def _batches(rows: Sequence[Row]) -> Iterator[list[int]]:
    """Yield the rows that are answered together, by their places: prompts that are about as long as each other."""
    batch: list[int] = []
    for i in sorted((i for i, row in enumerate(rows) if row.prompt), key=lambda i: len(rows[i].prompt)):
        full = len(batch) == TOGETHER or (len(batch) + 1) * len(rows[i].prompt) > TOGETHER_TOKENS
        if batch and full:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _texts(model: Any, rows: Rows, batch: Sequence[int]) -> Iterator[str]:
    """Yield what a model answers to some prompts."""
    import torch

    tokenizer = rows.tokenizer
    pad_within(tokenizer, model.config.get_text_config().vocab_size)
    prompts = [rows.rows[i].prompt for i in batch]
    longest = max(map(len, prompts))
    ids = [[tokenizer.pad_token_id] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    asked = {"input_ids": torch.tensor(ids, device=model.device)}
    asked["attention_mask"] = torch.tensor(mask, device=model.device)
    stops = {"eos_token_id": list(rows.stops)} if rows.stops else {}
    out = model.generate(**asked, max_new_tokens=WRITTEN, do_sample=False, pad_token_id=tokenizer.pad_token_id, **stops)
    for tokens in out[:, longest:].tolist():
        end = next((i for i, token in enumerate(tokens) if token in rows.stops), None)
        text = spoken(tokenizer.decode(tokens[:end], skip_special_tokens=True))
        yield text if end is not None or not rows.stops else f"{text} …"


def spoken(text: str) -> str:
    """Return an answer without the thoughts before it and the blanks around it."""
    return text.rpartition(THOUGHT)[2].strip()


def compared(rows: Rows, said: dict[ModelName, Said]) -> tuple[Compared, tuple[ComparedRow, ...]]:
    """Compare what models have made of the same rows; give the worst rows too.

    Args:
        rows: That all of them have answered.
        said: By model, the base model first, the result last.
    """
    tokens = np.array([row.tokens for row in rows.rows], dtype=np.float64)
    found = Compared(
        data=rows.data,
        held_out=rows.held_out,
        rows=len(tokens),
        tokens=int(tokens.sum()),
        short=sum(row.short for row in rows.rows),
        models=tuple(
            Answered(
                name=name,
                loss=float(one.losses.sum() / tokens.sum()),
                right=int(_right(rows.rows, one).sum()),
                change=_change(rows.rows, tokens, one, said["base"]) if name != "base" else None,
                cost=_change(rows.rows, tokens, one, said["tuned"])
                if name == "quantized" and "tuned" in said
                else None,
            )
            for name, one in said.items()
        ),
    )
    *_, last = said.values()
    lost = _right(rows.rows, said["base"]) & ~_right(rows.rows, last)
    worst = sorted(range(len(tokens)), key=lambda i: (not lost[i], -last.losses[i] / tokens[i]))[:SHOWN]
    return found, tuple(_shown(i, rows.rows[i], list(said.values())) for i in worst)


def _change(rows: Sequence[Row], tokens: NDArray[np.float64], one: Said, other: Said) -> Change:
    """Say how answers differ from others to the same rows, of so many tokens each, [rows]."""
    sums = np.stack([tokens, one.losses - other.losses], 1)
    found = intervals(sums, lambda drawn: drawn[:, 1:] / drawn[:, :1])
    right, before = _right(rows, one), _right(rows, other)
    return Change(
        loss=float(sums[:, 1].sum() / tokens.sum()),
        interval=found[0] if found else None,
        better=int((sums[:, 1] < 0).sum()),
        worse=int((sums[:, 1] > 0).sum()),
        gained=int((right & ~before).sum()),
        lost=int((before & ~right).sum()),
    )


def _right(rows: Sequence[Row], said: Said) -> NDArray[np.bool_]:
    """Return which short answers are given word for word, [rows]."""
    return np.array([row.short and text == row.expected for row, text in zip(rows, said.texts, strict=True)])


def _shown(place: int, row: Row, said: Sequence[Said]) -> ComparedRow:
    """Return a row with what each model makes of it, at its place among all."""
    texts = [one.texts[place] for one in said]
    return ComparedRow(
        row=row.number,
        prompt=shortened(row.question, LETTERS),
        expected=shortened(row.expected, LETTERS),
        answers=tuple(text and shortened(text, LETTERS) for text in texts),
        losses=tuple(round(float(one.losses[place]) / row.tokens, 4) for one in said),
    )
