"""Merge: LoRA adapters and a base model become one model, piece by piece, whatever its size; no torch, no peft.

An adapter is added where it was trained: a QLoRA adapter to the base model as 4 bits have left it (dequantized NF4),
for that is what its training corrected; see https://github.com/huggingface/peft/issues/2105.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from backend.artifacts.artifact import TRAINED_HERE, Merged
from backend.errors import SpecError
from backend.hub.files import LocalFiles
from backend.hub.ids import is_local
from backend.merge.adapter import Adapter, read_adapter
from backend.merge.options import Into, MergeOptions
from backend.merge.plan import Base, Made, Merger, packed, vocabulary
from backend.merge.weights import AdapterFile, MergedWeights, Opened
from backend.models.families import traits
from backend.models.rewriting import loaded_dtype, stream
from backend.progress import Report
from backend.weights.checkpoint import Checkpoint, Weights
from backend.weights.codes import CODES
from backend.weights.dequantized import Dequantized
from backend.weights.floats import SAFETENSORS
from backend.weights.output import Output


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
        if not traits(model_type).converted:
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
