"""What became of the answers to rows that nobody trained on: base, tuned and quantized model, row by row.

The figures are recorded with the artifact and stand in its card. The rows are the user's: they stay with the job.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import ConfigDict, Field

from backend.intervals import FEWEST, LEVEL, Interval, between
from backend.options import Frozen

ModelName = Literal["base", "tuned", "quantized", "result"]
"""What a model is: a result of which nobody knows how it was made from the base is just that."""


class Change(Frozen):
    """How a model's answers differ from another's, row by row."""

    loss: float = Field(description="Its loss less the other's, nats a token of the answers.")
    interval: Interval | None = Field(None, description="Of that; None: there were too few rows.")
    better: int = Field(ge=0, description="Rows whose answer it finds likelier.")
    worse: int = Field(ge=0, description="Rows whose answer it finds less likely.")
    gained: int = Field(0, ge=0, description="Short answers that are right now and were not.")
    lost: int = Field(0, ge=0, description="Short answers that were right and are not now.")

    @property
    def sure(self) -> bool:
        """Whether the interval leaves no room for the two being the same."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]

    @property
    def words(self) -> str:
        """The difference of the losses, with its interval."""
        return f"{self.loss:+.3f}{between(self.interval, '+.3f')}"


class Answered(Frozen):
    """How one model answers."""

    name: ModelName
    loss: float = Field(ge=0, description="Nats a token of the answers.")
    right: int = Field(0, ge=0, description="Short answers that it gives word for word.")
    change: Change | None = Field(None, description="Against the base model; None of itself.")
    cost: Change | None = Field(None, description="Of a quantized model that was tuned: against the tuned one.")


class Compared(Frozen):
    """How two or three models answer the same rows."""

    data: str = Field(description="Hub id, bare name of a file, or demo.")
    held_out: bool = Field(description="Whether the training of the same recipe kept them out.")
    rows: int = Field(gt=0)
    tokens: int = Field(gt=0, description="Of the answers.")
    short: int = Field(0, ge=0, description="Rows with an answer so short that it can be given word for word.")
    models: tuple[Answered, ...] = Field(min_length=2, description="The base model first.")

    @property
    def counted(self) -> str:
        """The rows, in words."""
        return f"{self.rows} {'held-out ' if self.held_out else ''}row{'' if self.rows == 1 else 's'}"

    @property
    def words(self) -> str:
        """Whether tuning helped, and what quantizing cost, as far as the rows can tell."""
        return " ".join(self.sentences.values())

    @property
    def sentences(self) -> dict[ModelName, str]:
        """The same by the model that each sentence is about."""
        base, *others = self.models
        said: dict[ModelName, str] = {}
        for one in others:
            if one.name == "quantized":
                said[one.name] = self._quantized(one)
            else:
                said[one.name] = self._tuned(base, one) if one.name == "tuned" else self._result(base, one)
        return said

    @property
    def legend(self) -> str:
        """What the figures are."""
        drawn = "too few for an interval" if self.rows < FEWEST else f"in brackets {LEVEL:.0%} intervals over the rows"
        return f"Loss in nats a token of the answers, {self.tokens:,} tokens in {self.counted} of {self.data}; {drawn}."

    def _tuned(self, base: Answered, tuned: Answered) -> str:
        change = tuned.change
        assert change
        if not change.sure:
            went = f"the loss of the answers went {_went(base, tuned)}"
            return f"Tuning made no difference that {self.counted} can show: {went}."
        verb = "helped" if change.loss < 0 else "hurt"
        return f"Tuning {verb}: over {self.counted} {self._moved(base, tuned)}."

    def _result(self, base: Answered, result: Answered) -> str:
        assert result.change
        if not result.change.sure:
            went = f"the loss of the answers went {_went(base, result)}"
            return f"The models do not differ in what {self.counted} can show: {went}."
        verb = "better" if result.change.loss < 0 else "worse"
        return f"The result answers {verb} than its reference: over {self.counted} {self._moved(base, result)}."

    def _moved(self, before: Answered, after: Answered) -> str:
        """Say how the loss moved, in how many rows which way, and how many answers are right."""
        assert after.change
        moved = "fell" if after.change.loss < 0 else "rose"
        rows = f"{after.change.better} of the rows got better, {after.change.worse} worse"
        return f"the loss of the answers {moved} {_went(before, after)}; {rows}{self._right(after)}"

    def _quantized(self, quantized: Answered) -> str:
        cost = quantized.cost or quantized.change
        assert cost
        if not cost.sure:
            return f"Quantizing made no difference that {self.counted} can show: {cost.words} nats a token."
        if cost.loss < 0:
            return f"Quantizing cost nothing: the loss of the answers even fell by {cost.words} nats a token."
        gained = -self.models[1].change.loss if quantized.cost and self.models[1].change else 0
        share = f", {cost.loss / gained:.0%} of what tuning had gained" if gained > 0 else ""
        lost = f"{cost.loss:.3f}{between(cost.interval, '.3f')}"
        return f"Quantizing cost {lost} nats a token of the answers{share}{self._right(quantized)}."

    def _right(self, model: Answered) -> str:
        """Say how many short answers are right, where there are any."""
        if not self.short:
            return ""
        before = self.models[[one.name for one in self.models].index(model.name) - 1]
        if before.right == model.right:
            return f", and {model.right} of {self.short} short answers are right as before" if model.right else ""
        return f", and right answers went from {before.right} to {model.right} of {self.short}"


def _went(before: Answered, after: Answered) -> str:
    assert after.change
    return f"from {before.loss:.3f} to {after.loss:.3f} ({after.change.words})"


class ComparedRow(Frozen):
    """One row as all of them answer it, to be shown to whoever gave it."""

    model_config = ConfigDict(str_strip_whitespace=False)

    row: int = Field(description="Its number in the data.")
    prompt: str
    expected: str
    answers: tuple[str | None, ...] = Field(description="Of the models, in order; None where none was asked for.")
    losses: tuple[float, ...] = Field(description="The same: nats a token of the answer.")

    def words(self, names: Sequence[str]) -> str:
        """Write what all of them say to it, for a terminal.

        Args:
            names: Of the models.
        """
        said = [("asked", self.prompt, ""), ("expected", self.expected, "")]
        said += [
            (name, text or "", f" (loss {loss:.3f})")
            for name, text, loss in zip(names, self.answers, self.losses, strict=True)
        ]
        lines = [f"  {name:<10}{' '.join(text.split())}{loss}" for name, text, loss in said if text or loss]
        return "\n".join([f"row {self.row}", *lines])
