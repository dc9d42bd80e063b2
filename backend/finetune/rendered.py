"""What the model will see: rendered rows counted and shown before anything is trained on them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from pydantic import ConfigDict, Field

from backend.data.findings import Ledger
from backend.data.samples import Sample
from backend.finetune.rendering import IGNORED, Rendered
from backend.models.chat_template import TemplateRefusal
from backend.options import Frozen

SHOWN = 10
BINS = 20
SHOWN_TEXT = 2_000  # characters of a sample


class Renders(Protocol):
    """What renders rows: a Renderer, or what chooses among several."""

    def render(self, sample: Sample) -> Rendered:
        """Render a row; see Renderer."""


class Piece(Frozen):
    """Letters that follow each other and are learned or not."""

    model_config = ConfigDict(str_strip_whitespace=False)

    text: str
    learned: bool


class Survey(Frozen):
    """Counts and examples of rendered rows."""

    rows: int = Field(description="Rows that are trained on.")
    tokens: int = Field(description="Of them all.")
    learned_tokens: int = Field(description="Those that count for the loss.")
    longest: int = Field(description="Tokens of the longest row, before anything is cut.")
    truncated: int = Field(description="Rows cut at max_length.")
    masked: int = Field(description="Rows left out, because no token of them would count.")
    refused: int = Field(0, description="Rows left out, because the chat template does not take them.")
    endless: int = Field(description="Rows whose answer ends without a token that stops generation.")
    histogram: tuple[tuple[int, int], ...] = Field(description="Upper end in tokens, and rows up to it.")
    samples: tuple[tuple[Piece, ...], ...] = Field(description="The first rows as the model sees them.")

    @property
    def looked_at(self) -> int:
        """Rows that were rendered, or should have been."""
        return self.rows + self.masked + self.refused

    @property
    def faults(self) -> dict[str, int]:
        """Rows that somebody should look at, by what is the matter with them."""
        return {
            "cut at max_length": self.truncated,
            "left out because nothing of them would be learned": self.masked,
            "left out because the chat template does not take them": self.refused,
            "without a token that ends the answer": self.endless,
        }

    @property
    def words(self) -> str:
        """Say it in a sentence or two."""
        text = f"{self.rows} rows of {self.tokens} tokens, of which {self.learned_tokens} are learned."
        said = [f"{count} {'is' if count == 1 else 'are'} {what}" for what, count in self.faults.items() if count]
        return f"{text} {', '.join(said)[:1].upper()}{', '.join(said)[1:]}." if said else text


def rendered(samples: Iterable[Sample], renderer: Renders, ledger: Ledger) -> Iterator[Rendered]:
    """Yield rows as the model sees them; the ledger is told of those that the chat template does not take."""
    for sample in samples:
        try:
            yield renderer.render(sample)
        except TemplateRefusal as e:
            text = f"the chat template does not take the conversation ({e.why})"
            ledger.faulty("chat_template", sample.row, text, "change it")


def render(samples: Iterable[Sample], renderer: Renders, ledger: Ledger) -> tuple[list[Rendered], int]:
    """Render rows; give those that something can be learned from, and how many others there were; see rendered()."""
    rows = list(rendered(samples, renderer, ledger))
    kept = [row for row in rows if row.learned]
    return kept, len(rows) - len(kept)


def survey(rows: Sequence[Rendered], masked: int, tokenizer: Any, refused: int = 0) -> Survey:
    """Count rendered rows and show the first.

    Args:
        rows: That are trained on.
        masked: Rows that were left out, for nothing of them would be learned.
        tokenizer: That they were rendered with.
        refused: Rows that the chat template does not take.
    """
    lengths = [len(row.input_ids) for row in rows]
    whole = [len(row.input_ids) + row.cut for row in rows]
    step = max(1, -(-max(lengths, default=1) // BINS))
    ends = range(step, max(lengths, default=0) + step, step)
    return Survey(
        rows=len(rows),
        tokens=sum(lengths),
        learned_tokens=sum(row.learned for row in rows),
        longest=max(whole, default=0),
        truncated=sum(row.cut > 0 for row in rows),
        masked=masked,
        refused=refused,
        endless=sum(not row.ends for row in rows),
        histogram=tuple((end, sum(end - step < n <= end for n in lengths)) for end in ends),
        samples=tuple(_pieces(row, tokenizer) for row in rows[:SHOWN]),
    )


def _pieces(row: Rendered, tokenizer: Any) -> tuple[Piece, ...]:
    """Cut a row where what is learned begins and ends."""
    parts: list[tuple[bool, list[int]]] = []
    for token, label in zip(row.input_ids, row.labels, strict=True):
        learned = label != IGNORED
        if not parts or parts[-1][0] != learned:
            parts.append((learned, []))
        parts[-1][1].append(token)
    return tuple(Piece(text=tokenizer.decode(tokens), learned=learned) for learned, tokens in parts)


def shortened(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the pieces up to a length that one can still look at."""
    left = SHOWN_TEXT
    for piece in pieces:
        text = piece.text if len(piece.text) <= left else piece.text[:left] + " …"
        yield piece.model_copy(update={"text": text})
        left -= len(piece.text)
        if left <= 0:
            return
