"""How much a model got worse: perplexity, KL divergence and top-1 agreement against its reference.

Reference and result read the same windows in lockstep and only running sums are kept, so memory does not grow with the
text. KL(reference ‖ result) per token in nats; perplexity is exp(mean negative log-likelihood) over non-overlapping
windows, the convention of the GPTQ paper (arXiv 2210.17323).
"""

from typing import Literal

from pydantic import Field, model_validator

from backend.options import Frozen

WINDOW = 2048  # tokens; the GPTQ convention


class EvaluateOptions(Frozen):
    """What is measured, on which text."""

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
        8, ge=1, le=4096, description="Windows at the most. More: a steadier figure, and as much more time."
    )

    @model_validator(mode="after")
    def _one_source(self) -> "EvaluateOptions":
        if self.text and self.dataset:
            raise ValueError("text and dataset exclude each other: give one of them")
        return self


class Metrics(Frozen):
    """What was measured; `convention` says how, in one line, for the card."""

    kl_mean: float = Field(ge=0, description="Mean KL(reference ‖ result) a token, in nats.")
    kl_p99: float = Field(ge=0, description="99th percentile of the same.")
    top1_agreement: float = Field(ge=0, le=1, description="Share of tokens where both think the same token likeliest.")
    perplexity: float = Field(gt=0, description="Of the result.")
    reference_perplexity: float = Field(gt=0, description="Of the reference.")
    tokens: int = Field(gt=0, description="Predicted tokens measured on.")
    text: str = Field(description="Name of the text or data set.")
    convention: str = Field(description="How it was measured.")
