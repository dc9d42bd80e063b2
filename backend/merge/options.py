"""Which adapters are merged, and into what."""

import math
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from backend.errors import SpecError
from backend.hub.ids import model_field
from backend.merge.plan import packed
from backend.models.facts import ModelFacts
from backend.models.families import traits
from backend.models.rewriting import Dtype, StreamOptions
from backend.options import ADVANCED
from backend.weights.codes import CODES

Into = Literal["original", "nf4", "fp4"]

UNDONE = (
    "the merged weights lie next to the 4-bit numbers that they were, so that rounding to the same numbers again would"
    " undo the training."
)
"""Why what is merged into dequantized weights is not quantized the same way. Measured on the demo model with an adapter
that brings the loss on its rows from 3.73 to 1.64: 3.98 after NF4 of the merge into NF4, 1.53 into the original."""


class MergeOptions(StreamOptions):
    """Which adapters are merged, and into what."""

    NAMES = ("adapters",)
    makes = "merged"
    whole = False

    stage: Literal["merge"] = "merge"
    adapters: tuple[str, ...] = Field(
        (),
        description="LoRA adapters, by Hub id; on your own machine folders too. Several are added up. Empty: the one"
        " that the finetune stage before it makes.",
    )
    adapter_weights: tuple[float, ...] = Field(
        (), description="How much of each adapter is added, in the order of the adapters. Empty: 1 each."
    )
    merge_into: Literal["auto"] | Into = Field(
        "auto",
        description="What the adapter was trained on: the original weights, or with QLoRA what 4 bits left of them"
        " (nf4, fp4). auto: what the adapter records, else the original; the original too where nf4 or fp4 comes next.",
    )
    bnb_4bit_use_double_quant: bool = Field(
        True,  # upstream's False; QLoRA's own recipe and most trainings since have it on
        description="Whether the scales were quantized too in the training. Read where merge_into is nf4 or fp4.",
        json_schema_extra=ADVANCED,
    )
    dtype: Dtype | None = Field(
        None, description="Type of the merged weights. Not set: the base model's. float32 doubles the size."
    )
    other_base: bool = Field(
        False,
        description="Merge also where the adapter's settings name another base model, such as a mirror of this one.",
        json_schema_extra=ADVANCED,
    )
    keep: bool = Field(
        True,
        description="Write the merged model, which takes the disk of the base model once more. Off: only what is"
        " quantized from it, in one pass over the weights.",
    )
    adapter_revisions: tuple[str, ...] = Field(
        (),
        description="Branch, tag or commit of each adapter, empty for a folder; resolved to commits before the start.",
        json_schema_extra=ADVANCED,
    )

    @field_validator("adapters")
    @classmethod
    def _adapters(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        found = tuple(model_field(name, info) for name in value)
        if "demo" in found:
            raise ValueError("'demo' is the bundled model, not an adapter: give an adapter's Hub id")
        return found

    @model_validator(mode="after")
    def _one_each(self) -> "MergeOptions":
        for name in ("adapter_weights", "adapter_revisions"):
            if (given := len(getattr(self, name))) not in (0, len(self.adapters)):
                raise ValueError(
                    f"{name}: has {given} entries for {len(self.adapters)} adapters: give one each, or none"
                )
        if not all(math.isfinite(weight) and weight for weight in self.adapter_weights):
            raise ValueError("adapter_weights: must be numbers other than 0: leave an adapter out instead")
        return self

    def after(self, quantization: str) -> "MergeOptions":
        """Return the options with what auto will come to where a training holds the base model so."""
        known = self.merge_into == "auto" and quantization in CODES
        return self.model_copy(update={"merge_into": quantization}) if known else self

    def check(self, facts: ModelFacts) -> None:
        """Refuse a base model that nothing can be merged into, before anything is downloaded.

        Raises:
            SpecError: It is quantized, or cannot have been trained in 4 bit.
        """
        if facts.quant_method:
            raise packed(facts.base_model or Path(facts.model).name, facts.quant_method)
        if self.merge_into not in ("auto", "original") and not traits(facts.model_type).converted:
            text = f"a model of the type '{facts.model_type}' is merged into its original weights only: choose original"
            raise SpecError(f"merge_into: {text}", {"merge_into": text})

    @property
    def target(self) -> str | None:
        """The type of the result; None: the base model's."""
        return self.dtype

    def weight(self, index: int) -> float:
        """Return the factor of an adapter."""
        return self.adapter_weights[index] if self.adapter_weights else 1.0
