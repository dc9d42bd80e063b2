"""Merge: LoRA adapters and a base model become one model, piece by piece, whatever its size; no torch, no peft.

An adapter is added where it was trained: a QLoRA adapter to the base model as 4 bits have left it (dequantized NF4),
for that is what its training corrected; see https://github.com/huggingface/peft/issues/2105.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationInfo, field_validator, model_validator

from backend.artifacts.artifact import TRAINED_HERE, Merged
from backend.errors import SpecError
from backend.hub.files import LocalFiles
from backend.hub.ids import is_local, model_field
from backend.merge.adapter import Adapter, read_adapter
from backend.merge.plan import Base, Made, Merger, packed, vocabulary
from backend.merge.weights import AdapterFile, MergedWeights, Opened
from backend.models.facts import ModelFacts
from backend.models.families import UNUSUAL
from backend.models.rewriting import Dtype, StreamOptions, loaded_dtype, stream
from backend.options import ADVANCED
from backend.progress import Report
from backend.weights.checkpoint import Checkpoint, Weights
from backend.weights.codes import CODES
from backend.weights.dequantized import Dequantized
from backend.weights.floats import SAFETENSORS
from backend.weights.output import Output

TITLE = "Merge"
SUMMARY = "Adapters and their base model become one model, which needs no PEFT to load."

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
        if self.merge_into not in ("auto", "original") and facts.model_type in UNUSUAL:
            text = f"a model of the type '{facts.model_type}' is merged into its original weights only: choose original"
            raise SpecError(f"merge_into: {text}", {"merge_into": text})

    @property
    def target(self) -> str | None:
        """The type of the result; None: the base model's."""
        return self.dtype

    def weight(self, index: int) -> float:
        """Return the factor of an adapter."""
        return self.adapter_weights[index] if self.adapter_weights else 1.0


class Trained(NamedTuple):
    """What adapters are merged into."""

    into: Into
    double: bool = False  # whether the scales of nf4 or fp4 were quantized too
    recorded: bool = False  # whether the adapters say so themselves


def trained_on(adapters: Sequence[Adapter], options: MergeOptions) -> Trained:
    """Say what adapters are merged into.

    Raises:
        SpecError: They record different things, so that nothing suits all.
    """
    if options.merge_into != "auto":
        four_bit = options.merge_into != "original"
        return Trained(options.merge_into, four_bit and options.bnb_4bit_use_double_quant)
    found = {_recorded(adapter) for adapter in adapters}
    if len(found) > 1:
        names = ", ".join(f"'{adapter.name}'" for adapter in adapters)
        raise SpecError(
            f"The adapters {names} were trained on different weights: choose merge_into, or merge one alone."
        )
    return next(iter(found))


def _recorded(adapter: Adapter) -> Trained:
    quant_type = adapter.quantization.get("bnb_4bit_quant_type")
    if quant_type not in CODES:
        return Trained("original")
    double = adapter.quantization.get("bnb_4bit_use_double_quant") is True
    return Trained(quant_type, double, recorded=True)


def described(
    base: Base, config: Mapping[str, Any], adapters: Sequence[Adapter], options: MergeOptions
) -> tuple[list[Made], dict[str, Any]]:
    """Return what becomes of each tensor and of config.json, from headers alone; `dtype` in it is the result's.

    Raises:
        SpecError: An adapter does not fit the base model; what does not, and what to do.
    """
    merger = Merger(base)
    for index, adapter in enumerate(adapters):
        merger.add(index, adapter, options.weight(index))
    made = merger.made(adapters)
    changes: dict[str, Any] = {"dtype": options.dtype or loaded_dtype(config, base.tensors)}
    if merger.parts:
        changes["tie_word_embeddings"] = False
    if (tokens := vocabulary(made, merger)) is not None:
        changes["vocab_size"] = tokens
    return made, {k: v for k, v in config.items() if k != "torch_dtype"} | changes


@contextmanager
def merged(weights: Weights, folders: Sequence[Path], options: MergeOptions, report: Report) -> Iterator[MergedWeights]:
    """Open a base model's weights with adapters merged in.

    Args:
        weights: Of the base model, in 16 or 32 bit.
        folders: Of the adapters, in the order of the options.
        options: What is merged how; where the adapters lie is not read.
        report: Receives what they are merged into.

    Raises:
        SpecError: An adapter does not fit the base model; what does not, and what to do.
    """
    if method := (weights.config.get("quantization_config") or {}).get("quant_method"):
        raise packed(weights.name, method)
    adapters = [read_adapter(LocalFiles(folder), folder.name) for folder in folders]
    model_type, dtype = str(weights.config.get("model_type")), loaded_dtype(weights.config, weights.tensors)
    trained = trained_on(adapters, options)
    if trained.into != "original":
        if model_type in UNUSUAL:
            raise SpecError(f"'{weights.name}' is of the type '{model_type}': choose merge_into original.")
        weights = Dequantized(weights, trained.into, trained.double, SAFETENSORS[dtype])
    report.log(words(trained, options))
    base = Base(weights.name, model_type, weights.tensors)
    made, config = described(base, weights.config, adapters, options)
    with ExitStack() as stack:
        opened = []
        for folder, adapter in zip(folders, adapters, strict=True):
            checkpoint = stack.enter_context(Checkpoint(AdapterFile(folder, adapter.header), {}))
            opened.append(Opened(adapter, checkpoint))
        yield MergedWeights(weights, made, opened, config, SAFETENSORS[config["dtype"]])


def record(folders: Sequence[Path], options: MergeOptions) -> Merged:
    """Return what an artifact remembers of a merge; a folder of this machine by its bare name.

    Args:
        folders: Of the adapters.
        options: What was merged how.
    """
    trained = trained_on([read_adapter(LocalFiles(folder), folder.name) for folder in folders], options)
    return Merged(
        adapters=tuple(Path(name).name if is_local(name) else name for name in options.adapters) or (TRAINED_HERE,),
        revisions=options.adapter_revisions,
        weights=tuple(options.weight(index) for index in range(len(folders))),
        into=trained.into,
        double_quant=trained.double,
    )


def merge(weights: Weights, output: Output, options: MergeOptions, report: Report) -> None:
    """Write a merged model into an empty folder.

    Args:
        weights: From merged().
        output: Where to.
        options: As given to merged().
        report: Receives the bytes.
    """
    stream(weights, output, options, report)


def words(trained: Trained, options: MergeOptions) -> str:
    """Say what adapters are merged into, and why."""
    if trained.into == "original":
        why = "" if options.merge_into == "original" else ": no adapter records a 4-bit training"
        return f"Merging into the original weights{why}."
    double = ", double quantization" if trained.double else ""
    why = "as the adapter records" if trained.recorded else "as asked"
    return f"Merging into the dequantized weights ({trained.into.upper()}{double}), {why}."
