"""Rendering: from samples to the tokens that the model sees, and which of them count for the loss.

An answer counts with the token that ends it, so that the tuned model stops; what the chat template puts around it does
not. Where an answer lies is found by rendering the conversation up to it: what comes then is the answer. Special tokens
that somebody has typed into a text are encoded as the letters they are.
"""

import re
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from backend.errors import SpecError
from backend.finetune.samples import Message, Sample

IGNORED = -100
"""The label of a token that does not count, as PyTorch's cross entropy has it."""

Loss = Literal["auto", "assistant", "completion", "all"]

_MARK = "\ue000{}\ue001"  # private use: stands for a special token that somebody has typed
_MARKED = re.compile("\ue000(\\d+)\ue001")

Span = tuple[int, int]


class Rendered(NamedTuple):
    """A row as the model sees it.

    Attributes:
        row: Its number in the data.
        input_ids: The tokens, [n].
        labels: The same where the token counts for the loss, else IGNORED, [n].
        ends: Whether the last answer ends with a token that stops generation, before anything is cut.
        cut: Tokens that max_length has taken away.
    """

    row: int
    input_ids: list[int]
    labels: list[int]
    ends: bool
    cut: int

    @property
    def learned(self) -> int:
        """Number of tokens that count."""
        return sum(label != IGNORED for label in self.labels)


class Renderer:
    """Renders samples with a model's tokenizer.

    Args:
        tokenizer: A fast one of transformers, with a chat template where there are messages.
        loss: Which tokens count.
        max_length: Tokens of a row at the most.
        stops: Tokens that end generation.

    Raises:
        SpecError: The tokenizer cannot tell where a token lies in the text.
    """

    def __init__(self, tokenizer: Any, loss: Loss, max_length: int, stops: Iterable[int]) -> None:
        if not tokenizer.is_fast:
            raise SpecError("The model's tokenizer is not a fast one, without which answers cannot be found: choose"
                            " another model.")  # fmt: skip
        self._tokenizer, self._loss, self._max_length = tokenizer, loss, max_length
        self._stops = frozenset(stops)
        self._special = sorted({text for text in tokenizer.all_special_tokens if text}, key=len, reverse=True)
        self._typed = re.compile("|".join(map(re.escape, self._special)) or r"(?!)")

    def render(self, sample: Sample) -> Rendered:
        """Render a row.

        Raises:
            SpecError: The chat template does not take it; the row and why.
        """
        if sample.messages:
            text = self._conversation(sample.messages, sample.row)
            ids, places = self._tokens(text, add_special_tokens=False)
            spans = [(0, len(text))] if self._loss == "all" else self._answers(sample, text)
        else:
            text = self._marked(sample.text or "")
            ids, places = self._tokens(text, add_special_tokens=True)
            spans = [(0, len(text))]
            if self._tokenizer.eos_token_id is not None and ids[-1:] != [self._tokenizer.eos_token_id]:
                ids, places = [*ids, self._tokenizer.eos_token_id], [*places, (len(text) - 1, len(text))]
        labels = [
            token if any(first <= start < last and end > start for first, last in spans) else IGNORED
            for token, (start, end) in zip(ids, places, strict=True)
        ]
        learned = [label for label in labels if label != IGNORED]
        ends = bool(learned) and learned[-1] in self._stops
        cut = max(len(ids) - self._max_length, 0)
        return Rendered(sample.row, ids[: self._max_length], labels[: self._max_length], ends, cut)

    def _conversation(self, messages: tuple[Message, ...], row: int, prompt: bool = False) -> str:
        from jinja2 import TemplateError

        turns = [{"role": message.role, "content": self._marked(message.content)} for message in messages]
        try:
            return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt))
        except (TemplateError, ValueError, TypeError) as e:
            why = " ".join(str(e).split()) or type(e).__name__
            raise SpecError(f"Row {row} does not go through the model's chat template. {why}: change the row, or leave"
                            " it out.") from e  # fmt: skip

    def _answers(self, sample: Sample, text: str) -> list[Span]:
        """Give where the answers that count lie in a rendered conversation."""
        answers = [i for i, message in enumerate(sample.messages) if message.role == "assistant"]
        if self._loss == "completion":
            answers = answers[-1:]
        elif sample.prompt is not None:
            answers = [i for i in answers if i >= sample.prompt]
        spans, position = [], 0
        for i in answers:
            before = self._conversation(sample.messages[:i], sample.row, prompt=True)
            after = self._conversation(sample.messages[: i + 1], sample.row)
            if after.startswith(before) and text.startswith(after):
                first, last = len(before), len(after)
            else:  # a template that writes earlier turns differently once there are later ones
                content = self._marked(sample.messages[i].content).strip()
                first = text.find(content, position)
                last = first + len(content)
                if first < 0:
                    continue
            last = self._end(text, first, last)
            spans.append((first, last))
            position = last
        return spans

    def _end(self, text: str, first: int, last: int) -> int:
        """Move the end of an answer to just behind the token that stops generation."""
        for special in self._typed.finditer(text, first):
            if special.start() > last + 1:
                break
            if self._tokenizer.convert_tokens_to_ids(special[0]) in self._stops:
                return special.end()
        return first + len(text[first:last].rstrip())

    def _marked(self, content: str) -> str:
        return self._typed.sub(lambda found: _MARK.format(self._special.index(found[0])), content)

    def _tokens(self, text: str, add_special_tokens: bool) -> tuple[list[int], list[Span]]:
        """Tokenize a text with marks; places are those in it."""
        ids: list[int] = []
        places: list[Span] = []
        at = 0
        for mark in (*_MARKED.finditer(text), None):
            piece = text[at : mark.start() if mark else len(text)]
            if piece or (at == 0 and add_special_tokens):
                found = self._tokenizer(
                    piece, add_special_tokens=add_special_tokens and at == 0, return_offsets_mapping=True
                )
                ids += found["input_ids"]
                places += [(at + start, at + end) for start, end in found["offset_mapping"]]
            if mark:
                typed = self._tokenizer(
                    self._special[int(mark[1])], add_special_tokens=False, split_special_tokens=True
                )["input_ids"]
                ids += typed
                places += [mark.span()] * len(typed)
                at = mark.end()
        return ids, places


def stops_of(tokenizer: Any, named: Iterable[int]) -> set[int]:
    """Give the tokens that end a model's answers: those its configs name, and the one its chat template writes.

    Args:
        tokenizer: Of transformers.
        named: By the model's configs, as stops_in() gives them.
    """
    stops = set(named)
    if tokenizer.eos_token_id is not None:
        stops.add(tokenizer.eos_token_id)
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "ANSWER"}]
        rest = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition("ANSWER")[2]
        ids = tokenizer(rest, add_special_tokens=False)["input_ids"]
        stops |= {token for token in ids[:1] if token in tokenizer.all_special_ids}
    return stops
