"""Rewriting a model in another format: what every stage that does so can be told, and the config of its result."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from backend.models.config import is_tied
from backend.options import ADVANCED
from backend.progress import Report
from backend.stage import Stage
from backend.weights.anatomy import TRANSPOSED, ahead, input_embeddings, kept_exact, output_head
from backend.weights.checkpoint import Weights
from backend.weights.floats import FLOATS, SAFETENSORS, named_dtype
from backend.weights.output import Output
from backend.weights.plan import Form, Part, Plain, Plan
from backend.weights.rewrite import Format, rewrite
from backend.weights.tensor import Tensor
from backend.weights.view import View
from backend.weights.writer import MAX_SHARD_SIZE, into_shards


class PlannedOptions(Stage):
    """What every stage that rewrites a model can be told; each adds form(), config() and its own."""

    max_shard_size: int = Field(
        MAX_SHARD_SIZE,
        ge=1,
        description="Bytes of weights in one file at most; a larger model is split into shards.",
        json_schema_extra=ADVANCED,
    )

    @property
    def target(self) -> str | None:
        """Torch's name of the type of all tensors that the method leaves as they are; None: the config's."""
        return None

    def form(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> Form | None:
        """Return what becomes of each tensor that it does not skip; None: all stay as they are.

        Args:
            tensors: Of the model.
            config: What its config.json says.
        """
        return None

    def config(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
        """Return what changes in config.json; None removes a key.

        Args:
            tensors: Of the model that the result is made from.
            config: What its config.json says.
        """
        return {}

    def plan(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> Plan:
        """Say which file will hold which bytes.

        Args:
            tensors: Of the model, in the order in which they are read.
            config: What its config.json says.
        """
        return self.planned(tensors, config, self.form(tensors, config))

    def planned(self, tensors: Sequence[Tensor], config: Mapping[str, Any], form: Form | None) -> Plan:
        """Say the same of a form that is known already, which takes half a second to find of 20,000 tensors."""
        target = SAFETENSORS[self.target or loaded_dtype(config, tensors)]
        turned = config.get("model_type") in TRANSPOSED
        plain = Plain()
        exact, spare = kept_exact(tensors), ahead(tensors)
        work: list[tuple[View, Form | Plain]] = []
        for tensor in tensors:
            f = plain if form is None or form.skips(tensor) or tensor.name in spare else form
            dtype = target if tensor.dtype in FLOATS and tensor.name not in exact else tensor.dtype
            work.append((View(tensor, dtype, turned and f is not plain), f))
        slots = [f.slots(view) for view, f in work]
        shards = into_shards(slots, self.max_shard_size)
        place = {name: shard.file for shard in shards for name in shard.names}
        parts = {shard.file: Part(shard, []) for shard in shards}
        for pair, made in zip(work, slots, strict=True):
            parts[place[made[0].name]].work.append(pair)
        return Plan(tuple(parts.values()), plain, sum(view.elements for view, _ in work))


class StreamOptions(PlannedOptions):
    """Options of a method that sees each tensor alone, piece by piece."""

    streams = True

    def form(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> Format | None:
        """Return what becomes of each tensor that it does not skip; None: all stay as they are."""
        return None


def stream(weights: Weights, output: Output, options: StreamOptions, report: Report) -> None:
    """Write a model's weights and config in another format, shard by shard; shards that are there already are left.

    Args:
        weights: The model's.
        output: Where they go.
        options: Say what becomes of them.
        report: Receives the bytes read.

    Raises:
        SpecError: A tensor holds numbers that are not finite, or lies beyond the end of its file.
    """
    planned = options.plan(weights.tensors, weights.config)
    rewrite(weights, output, planned, options.form(weights.tensors, weights.config), report)
    (output.folder / "config.json").write_bytes(
        config_json(weights.config, weights.tensors, options.config(weights.tensors, weights.config))
    )
    planned.warn(report)


def config_json(config: Mapping[str, Any], tensors: Sequence[Tensor], changes: Mapping[str, Any]) -> bytes:
    """Return a config.json with some of its keys changed.

    An output head that lies in the weights is said to be a tensor of its own: readers other than transformers would
    take the input embeddings in its place. The type is said too: readers would take that of the first scales.

    Args:
        config: Of the model that the result is made from.
        tensors: Of that model.
        changes: Values by key; None removes a key.
    """
    if is_tied(config) and input_embeddings(tensors) and output_head(tensors):
        changes = {**changes, "tie_word_embeddings": False}
    if named_dtype(config) is None:
        changes = {"dtype": loaded_dtype(config, tensors), "torch_dtype": None, **changes}
    merged = {k: v for k, v in {**config, **changes}.items() if v is not None or k not in changes}
    return (json.dumps(merged, indent=2) + "\n").encode()


def loaded_dtype(config: Mapping[str, Any], tensors: Sequence[Tensor]) -> str:
    """Return the type that transformers loads a model in: the config's, else that of its first tensor."""
    if (named := named_dtype(config)) is not None:
        return named
    first = next((t.dtype for t in tensors if t.dtype in FLOATS), "F32")
    return next((name for name, short in SAFETENSORS.items() if short == first), "float32")


Dtype = Literal["float32", "bfloat16", "float16"]
