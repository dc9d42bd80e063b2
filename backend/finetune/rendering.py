"""Rendering: from samples to the tokens that the model sees, and which of them count for the loss.

An answer counts with the token that ends it, so that the tuned model stops; what the chat template puts around it does
not. Plain text counts whole and is read as it stands: a conversation that is rendered already keeps its tokens.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any, Literal, NamedTuple

from backend.data.samples import Sample
from backend.errors import SpecError
from backend.finetune.answers import Ends, Span
from backend.finetune.conversation import Conversation, after_answer, template_of
from backend.models.tokens import any_of, around, control_tokens

IGNORED = -100
"""The label of a token that does not count, as PyTorch's cross entropy has it."""

Loss = Literal["auto", "assistant", "completion", "all"]

_BLANKS = 4
"""Tokens of blanks that may stand behind the one that ends a text."""


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
        max_length: Tokens of a row at most.
        stops: Tokens that end generation.

    Raises:
        SpecError: The tokenizer cannot tell where a token lies in the text.
    """

    def __init__(self, tokenizer: Any, loss: Loss, max_length: int, stops: Iterable[int]) -> None:
        if not tokenizer.is_fast:
            raise SpecError("The model's tokenizer is not a fast one, without which answers cannot be found: choose"
                            " another model.")  # fmt: skip
        self._tokenizer = tokenizer
        self._loss = loss
        self._max_length = max_length
        self._stops = frozenset(stops)
        self._around = around(tokenizer)
        self.control = control_tokens(tokenizer)
        ends = tuple(text for text in tokenizer.convert_ids_to_tokens(sorted(self._stops)) if text)
        self._ends = Ends(any_of(ends), any_of(self.control.special | self.control.markup))
        self._template = template_of(tokenizer, self.control, ends)

    def render(self, sample: Sample) -> Rendered:
        """Render a row.

        Raises:
            TemplateRefusal: The chat template does not take it; why.
        """
        ids, labels = self._conversation(sample) if sample.messages else self._plain(sample.text or "")
        learned = [label for label in labels if label != IGNORED]
        ends = bool(learned) and self._stopped(learned)
        cut = max(len(ids) - self._max_length, 0)
        return Rendered(sample.row, ids[: self._max_length], labels[: self._max_length], ends, cut)

    def _plain(self, text: str) -> tuple[list[int], list[int]]:
        """Return the tokens of a text, as every tokenizer reads it, begun and ended once; all but the first count."""
        before, after = self._around
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if before and ids[: len(before)] == before:
            ids = ids[len(before) :]  # it is rendered already
        if not self._stopped(ids):
            eos = self._tokenizer.eos_token_id
            ids = ids + after
            ids = ids if eos is None or ids[-1:] == [eos] else [*ids, eos]
        return [*before, *ids], [*[IGNORED] * len(before), *ids]

    def _stopped(self, ids: list[int]) -> bool:
        """Return whether tokens end with one that stops generation, and at most blanks behind it."""
        for count in range(1, min(len(ids), _BLANKS) + 1):
            if ids[-count] in self._stops:
                return count == 1 or not self._tokenizer.decode(ids[1 - count :]).strip()
        return False

    def _conversation(self, sample: Sample) -> tuple[list[int], list[int]]:
        """Return the tokens of a conversation, and their labels."""
        talk = Conversation(self._template, sample)
        if self._loss == "all":
            ids, _ = self._tokens(talk.text(), talk.breaker)
            return self._closed(ids, ids)
        text, spans = talk.answers(self._wanted(sample), self._ends)
        ids, places = self._tokens(text, talk.breaker)
        return self._closed(ids, _labels(ids, places, spans))

    def _closed(self, ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
        """Return a conversation and its labels, ended where the template leaves the last answer open, as GLM-4's does.

        The model's end of text stands in place of the blanks behind the answer then, and counts.
        """
        eos = self._tokenizer.eos_token_id
        end = max((i + 1 for i, label in enumerate(labels) if label != IGNORED), default=0)
        if eos is None or not end or self._stopped(labels[:end]) or self._tokenizer.decode(ids[end:]).strip():
            return ids, labels
        if self._tokenizer.convert_ids_to_tokens(labels[end - 1]) in self.control.special:
            return ids, labels
        return [*ids[:end], eos], [*labels[:end], eos]

    def _wanted(self, sample: Sample) -> list[int]:
        """Return which messages are answers that count."""
        answers = [i for i, m in enumerate(sample.messages) if m.role == "assistant" and m.fields.get("weight") != 0]
        if self._loss == "completion":
            return answers[-1:]
        return [i for i in answers if i >= (sample.prompt or 0)]

    def _tokens(self, text: str, breaker: str) -> tuple[list[int], list[Span]]:
        """Return the tokens of a text, but for those of its breakers, and where they lie in it."""
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        pairs = zip(found["input_ids"], found["offset_mapping"], strict=True)
        kept = [(token, place) for token, place in pairs if breaker not in text[slice(*place)]]
        return [token for token, _ in kept], [place for _, place in kept]


def _labels(ids: list[int], places: list[Span], spans: list[Span]) -> list[int]:
    """Return the tokens that lie in the spans, at least in part, and IGNORED for all others."""
    labels, at = [], 0
    for token, (start, end) in zip(ids, places, strict=True):
        while at < len(spans) and spans[at][1] <= start:
            at += 1
        counts = at < len(spans) and start < spans[at][1] and end > max(spans[at][0], start)
        labels.append(token if counts else IGNORED)
    return labels


def stops_of(tokenizer: Any, named: Iterable[int]) -> set[int]:
    """Return the tokens that end a model's answers: those its configs name, and the one its chat template writes.

    Args:
        tokenizer: Of transformers.
        named: By the model's configs, as stops_in() gives them.
    """
    stops = set(named)
    if tokenizer.eos_token_id is not None:
        stops.add(tokenizer.eos_token_id)
    control = control_tokens(tokenizer)
    steer = control.special | control.markup
    ids = tokenizer(after_answer(tokenizer), add_special_tokens=False)["input_ids"]
    written = zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)
    return stops | set(islice((token for token, text in written if text in steer), 1))
