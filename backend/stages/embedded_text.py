"""What calibration reads where nobody names rows: embedded prose, and conversations as the model's template has them.

A model without a chat template reads the prose alone. Conversations stand between the paragraphs, so that windows of
any number and length hold some of both.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from backend.data.conversations import conversations
from backend.data.samples import Sample
from backend.errors import SpecError
from backend.finetune.rendering import Rendered, Renderer, stops_of
from backend.models.chat_template import Abilities, TemplateRefusal, abilities, chat_text
from backend.models.demo import TEXT, calibration_text
from backend.quantize.calibrated.windows import Windows, text_windows, windows_of

EMBEDDED = f"{TEXT}, every second topic"

REPEATED = 3
"""How often the conversations are read, each time between other paragraphs: prose is many times as long."""

WHOLE = 10**9
"""Tokens that no row is cut at."""


class Talks(NamedTuple):
    """A renderer for conversations, whatever is in them.

    Attributes:
        plain: Renders what the template writes.
        answers: Renders the thoughts of a last answer too, where the template strips them.
    """

    plain: Renderer
    answers: Renderer

    @classmethod
    def of(cls, tokenizer: Any) -> "Talks":
        """Return one for a tokenizer with a chat template."""
        stops = stops_of(tokenizer, ())
        return cls(Renderer(tokenizer, "all", WHOLE, stops), Renderer(tokenizer, "assistant", WHOLE, stops))

    def render(self, sample: Sample) -> Rendered:
        """Render a conversation.

        Raises:
            TemplateRefusal: The chat template does not take it; why.
        """
        if sample.thinks:
            with suppress(TemplateRefusal):
                return self.answers.render(sample)
        return self.plain.render(sample)


def embedded_windows(tokenizer: Any, samples: int, length: int) -> Windows:
    """Cut the embedded texts into windows.

    Args:
        tokenizer: The model's.
        samples: Windows at most.
        length: Tokens in a window.

    Raises:
        SpecError: There is not enough for one window.
    """
    able, rows = abilities(tokenizer), list[list[int]]()
    if able.chats:
        rows = [*_rendered(tokenizer, able)]
    if not rows:
        return text_windows(EMBEDDED, calibration_text(), tokenizer, samples, length)
    return windows_of(_name(len(rows), able), _between(tokenizer, rows * REPEATED), tokenizer, samples, length)


def reads(able: Abilities) -> str:
    """Say what is read beside prose."""
    more = [what for what, there in (("thoughts", able.thinks), ("tool calls", able.tools)) if there]
    with_ = f", with {' and '.join(more)}" if more else ""
    return f"conversations through the model's chat template{with_}"


def _name(count: int, able: Abilities) -> str:
    return f"{EMBEDDED}, and {count} {reads(able)}"


def _rendered(tokenizer: Any, able: Abilities) -> Iterator[list[int]]:
    """Yield the tokens of the conversations that the chat template takes."""
    try:
        talks = Talks.of(tokenizer)
    except SpecError:  # a tokenizer that does not say where its tokens lie
        return
    for sample in conversations(able.tools, _field(tokenizer) if able.thinks else None):
        with suppress(SpecError):
            yield talks.render(sample).input_ids


def _field(tokenizer: Any) -> str:
    """Return the field in which a chat template reads thoughts: gpt-oss's has a name of its own."""
    for name in ("thinking", "reasoning_content"):
        turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", name: "WHY"}]
        with suppress(SpecError):
            if "WHY" in chat_text(tokenizer, turns):
                return name
    return "reasoning_content"  # one that strips them from a last answer


def _between(tokenizer: Any, rows: list[list[int]]) -> Iterator[list[int]]:
    """Yield the paragraphs of the prose, with the rows spread evenly among them."""
    texts = [f"{paragraph}\n\n" for paragraph in calibration_text().split("\n\n")]
    paragraphs = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    given = 0
    for number, paragraph in enumerate(paragraphs, 1):
        yield paragraph
        due = number * len(rows) // len(paragraphs)
        yield from rows[given:due]
        given = due
