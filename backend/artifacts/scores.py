"""Scores of benchmarks, as lm-eval computes them: a result's beside its reference's."""

from pydantic import Field

from backend.options import Frozen


class Score(Frozen):
    """One metric of one task."""

    task: str
    metric: str = Field(description="As lm-eval calls it, its filter in parentheses.")
    value: float = Field(description="Of the result.")
    stderr: float | None = Field(None, description="Its standard error, where lm-eval computes one.")
    reference: float
    reference_stderr: float | None = None
    higher_is_better: bool | None = None
    samples: int = Field(ge=0, description="Examples; 0 for a group of tasks.")
    num_fewshot: int | None = None

    @property
    def figures(self) -> tuple[str, str]:
        """Reference and result, each with its standard error."""
        pairs = ((self.reference, self.reference_stderr), (self.value, self.stderr))
        reference, result = (f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}") for value, error in pairs)
        return reference, result

    @property
    def asked(self) -> str:
        """How many examples, with how many others before each."""
        shots = "" if self.num_fewshot is None else f"{self.num_fewshot}-shot"
        return ", ".join(part for part in (f"{self.samples:,} examples" if self.samples else "", shots) if part)


class Scores(Frozen):
    """The scores of all tasks that were asked for."""

    harness: str = Field(description="lm-eval and its version.")
    chat_template: bool = Field(description="Whether the examples went through the model's chat template.")
    scores: tuple[Score, ...]

    @property
    def words(self) -> str:
        """All of them, for a person."""
        said = []
        for one in self.scores:
            reference, result = one.figures
            said.append(f"{one.task} {one.metric} {result} (reference {reference}; {one.asked})")
        return f"{self.legend} {'; '.join(said)}."

    @property
    def legend(self) -> str:
        """How they were computed."""
        through = "through" if self.chat_template else "without"
        return f"Tasks of {self.harness}, {through} the chat template, ± one standard error."
