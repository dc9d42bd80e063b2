"""What a training will need, before it starts: memory by part, of the machine and of a GPU, time, and what would fit.

Factors are measured by benchmarks/training_costs.py on CPUs; those that say so are from the sizes of types alone.
"""

import math
from itertools import product
from typing import Any, NamedTuple

from backend.data.slices import parse_split
from backend.executors.contract import Machine
from backend.finetune.layers import ALL_LINEAR, adaptable, stacks
from backend.finetune.options import FinetuneOptions
from backend.finetune.rendered import Survey
from backend.models.facts import ModelFacts
from backend.weights.anatomy import is_linear
from backend.weights.tensor import Tensor

PROCESS_BYTES = 780_000_000  # Python with torch, transformers, peft and trl
GPU_BYTES = 700_000_000  # CUDA's context and cuBLAS' workspace; not measured here
LAYER_BYTES = 1.25  # kept for each number that goes into or comes out of a linear layer, times the type's bytes
ADAPTED_BYTES = 7  # for each number that goes into an adapted layer: a float32 copy, the same dropped out, its mask
SUM_BYTES = 2  # for each number in experts that learn, whose adapter PEFT adds to all of them, times the type's bytes
SQUARE_BYTES = 3  # for each pair of tokens and head where attention is eager, times the type's bytes
TILE = (4096, 32768)  # tokens and words of the tiles in which TRL computes the loss
TILE_BYTES, GPU_TILE_BYTES = 47, 4  # of a cell, as if every token counted; of a GPU not measured here
LOGIT_BYTES = 16  # of a cell where they are computed at once
LOGITS = 1 << 26
"""Logits, learned tokens times vocabulary, up to which a batch's are computed at once; TRL goes through more in chunks.

TRL's way saves memory and costs a third of a step on a CPU, most of it for the gradient of a head that is frozen.
"""

START_SECONDS = 25.0
SECONDS_A_TOKEN_AND_PARAMETER = 6.2e-11  # 2 cores with AVX-512: `make demo-tune`, validations included
GPU_SECONDS_A_TOKEN_AND_PARAMETER = 2e-13  # 30 TFLOP/s; not measured here
AGAIN = 4 / 3  # of the time, where layers are computed twice

USUAL_ROW = 64  # tokens, before anybody has looked at the rows
USUAL_LONGEST = 128
USUAL_ROWS = 1000
SIDE_BY_SIDE_TOKENS = 4096
"""Tokens up to which rows lie side by side without flash attention: its mask grows with their square."""

SHORTEST = 128
"""Tokens below which no shorter max_length is proposed."""

BITS_4 = {True: 0.516, False: 0.5625}
"""Bytes of a parameter in 4 bits with its scales, by double quantization (arXiv 2305.14314, section 3)."""

OPTIMIZER_BYTES = {"adamw_torch": 8, "adamw_torch_fused": 8, "paged_adamw_8bit": 2, "adamw_8bit": 2, "sgd": 0}
"""Of state for each trained parameter."""


class RowSizes(NamedTuple):
    """How long the rows are that are trained on."""

    rows: float
    tokens: float  # of them all
    longest: int  # tokens


class TrainingCost(NamedTuple):
    """Bytes by part, and seconds."""

    host: dict[str, int]  # of the machine's memory, all processes
    gpu: dict[str, int]  # of the memory of each GPU; empty where there is none
    seconds: float

    @property
    def memory(self) -> int:
        """Bytes of the machine's memory."""
        return sum(self.host.values())

    @property
    def gpu_memory(self) -> int:
        """Bytes of the memory of each GPU."""
        return sum(self.gpu.values())

    @property
    def needed(self) -> int:
        """Bytes of the memory that holds the model: a GPU's where there is one."""
        return self.gpu_memory or self.memory


def sizes_of(options: FinetuneOptions, survey: Survey | None = None) -> RowSizes:
    """Return the sizes of the rows: what was seen of them, else a guess for as many as the split names."""
    if survey:
        return RowSizes(survey.rows, survey.tokens, min(survey.longest, options.max_length))
    rows = rows_of(options)
    return RowSizes(rows, rows * min(options.max_length, USUAL_ROW), min(options.max_length, USUAL_LONGEST))


def rows_of(options: FinetuneOptions) -> float:
    """Return the rows that are trained on, as far as the split says so."""
    _, part = parse_split(options.split)
    first, last = (0, None) if part.needs_total else part.bounds(None)
    rows = USUAL_ROWS if last is None else max(last - first, 0)
    kept_out = options.validation_size
    return max(rows - (kept_out if kept_out >= 1 else kept_out * rows), 1)


def adapted(facts: ModelFacts, options: FinetuneOptions) -> list[Tensor]:
    """Return the weights of the layers that get an adapter."""
    linears = adaptable(facts)
    if options.target_modules == ALL_LINEAR:
        return linears
    return [tensor for tensor in linears if tensor.name.split(".")[-2] in options.target_modules]


def adapter_parameters(facts: ModelFacts, options: FinetuneOptions) -> int:
    """Count what is trained: of each layer two matrices of the rank, and with DoRA a length for each output."""
    layers = sum(
        options.r * sum(tensor.shape) + (tensor.shape[0] if options.use_dora else 0)
        for tensor in adapted(facts, options)
    )
    return layers + expert_parameters(facts, options)


def expert_parameters(facts: ModelFacts, options: FinetuneOptions) -> int:
    """Count what is trained of experts: of each of a layer's two matrices of the rank."""
    if options.target_parameters == "none":
        return 0
    return sum(options.r * stack.experts * (stack.outputs + stack.inputs) for stack in stacks(facts))


def steps_of(options: FinetuneOptions, rows: float, processes: int) -> int:
    """Return the steps of a training.

    Args:
        options: Epochs, batch and limit.
        rows: To train on.
        processes: That learn together, each from batches of its own.
    """
    batch = options.per_device_train_batch_size * options.gradient_accumulation_steps * processes
    steps = math.ceil(math.ceil(rows / batch) * options.num_train_epochs)
    return steps if options.max_steps < 0 else min(steps, options.max_steps)


def unpacks(parameters: int, memory: int) -> bool:
    """Return whether a 4-bit base is held in 16 bits on a CPU: faster, where a quarter of the memory does for it."""
    return 8 * parameters < memory


def training_cost(facts: ModelFacts, options: FinetuneOptions, sizes: RowSizes, machine: Machine) -> TrainingCost:
    """Estimate what a training needs.

    Args:
        facts: Of the base model.
        options: How it is trained.
        sizes: Of the rows.
        machine: That it runs on.
    """
    optim = options.optim
    if optim == "auto":
        optim = "paged_adamw_8bit" if machine.gpu else "adamw_torch"
    parts = {
        "base": round(_base(facts, options, machine)),
        "adapter": (8 + OPTIMIZER_BYTES[optim]) * adapter_parameters(facts, options),  # with its gradient, in float32
        **_activations(facts, options, sizes, machine),
    }
    process = {"process": machine.processes * PROCESS_BYTES}
    seconds = _seconds(facts, options, sizes, machine)
    if machine.gpu:
        return TrainingCost(process, {"context": GPU_BYTES, **parts}, seconds)
    return TrainingCost(process | {name: machine.processes * count for name, count in parts.items()}, {}, seconds)


def fitting(
    facts: ModelFacts, options: FinetuneOptions, sizes: RowSizes, machine: Machine, room: int
) -> dict[str, Any] | None:
    """Find the settings to change so that a training fits; those that learn the same come first.

    Args:
        facts: Of the base model.
        options: That do not fit.
        sizes: Of the rows.
        machine: That it runs on.
        room: Bytes that there are for it.

    Returns:
        Options by name, or None where nothing fits.
    """
    size, steps = options.per_device_train_batch_size, options.gradient_accumulation_steps
    smaller = [each for each in range(size, 0, -1) if size % each == 0]
    lengths = [options.max_length]
    while lengths[-1] // 2 >= SHORTEST:
        lengths.append(lengths[-1] // 2)
    holds = dict.fromkeys((options.quantization, "nf4"))
    doubles = dict.fromkeys((options.gradient_checkpointing, "on"))
    for length, held, twice, batch in product(lengths, holds, doubles, smaller):
        changed: dict[str, Any] = {
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": steps * size // batch,
            "gradient_checkpointing": twice,
            "quantization": held,
            "max_length": length,
        }
        found = options.model_copy(update=changed)
        cut = sizes._replace(tokens=min(sizes.tokens, sizes.rows * length), longest=min(sizes.longest, length))
        if training_cost(facts, found, cut, machine).needed <= room:
            return {name: value for name, value in changed.items() if value != getattr(options, name)}
    return None


def way_out(facts: ModelFacts, options: FinetuneOptions, sizes: RowSizes, machine: Machine, room: int) -> str:
    """Say which settings would fit, or that none would; see fitting()."""
    changed = fitting(facts, options, sizes, machine, room)
    if not changed:
        return "no batch size, max_length, quantization or gradient_checkpointing makes it fit: choose a smaller model"
    same = changed.keys() <= {"per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing"}
    words = [f"{name} {value}" for name, value in changed.items()]
    return f"by the estimate it fits with {', '.join(words)}" + ", which learns the same" * same


def _base(facts: ModelFacts, options: FinetuneOptions, machine: Machine) -> float:
    """Return the bytes of the frozen base as it is held."""
    width = _width(options)
    linear = sum(tensor.elements for tensor in facts.tensors if is_linear(tensor))
    rest = width * (facts.parameters - linear)
    if options.quantization == "int8":
        return linear + rest
    if options.quantization == "none" or not (machine.gpu or not unpacks(facts.parameters, machine.memory)):
        return width * facts.parameters
    return BITS_4[options.bnb_4bit_use_double_quant] * linear + rest


def _activations(facts: ModelFacts, options: FinetuneOptions, sizes: RowSizes, machine: Machine) -> dict[str, int]:
    """Return the bytes of what a step keeps for the way back."""
    batch, longest = _batch_tokens(options, sizes)
    width, layers = _width(options), max(facts.layers, 1)
    through = sum(sum(tensor.shape) for tensor in facts.tensors if is_linear(tensor))
    copied = sum(tensor.shape[1] for tensor in adapted(facts, options))
    token = LAYER_BYTES * width * through + ADAPTED_BYTES * copied
    heads = facts.config.get("num_attention_heads") or 0
    square = batch * longest * heads * layers * SQUARE_BYTES * width if options.attn_implementation == "eager" else 0
    twice = {"on": True, "off": False, "auto": bool(machine.gpu)}[options.gradient_checkpointing]
    kept = (batch * token + square) / (layers if twice else 1) + batch * width * facts.hidden_size * layers * twice
    if options.target_parameters == "experts":
        kept += SUM_BYTES * width * sum(stack.elements for stack in stacks(facts))
    if machine.processes == 1 and batch * facts.vocab_size <= LOGITS:
        logits = LOGIT_BYTES * batch * facts.vocab_size
    else:
        cells = min(batch, TILE[0]) * min(facts.vocab_size, TILE[1])
        logits = (GPU_TILE_BYTES if machine.gpu else TILE_BYTES) * cells
    return {"activations": round(kept), "logits": logits}


def _batch_tokens(options: FinetuneOptions, sizes: RowSizes) -> tuple[int, int]:
    """Return the tokens of the largest batch, and up to how many of them attend to each other in one matrix."""
    size = options.per_device_train_batch_size
    if options.packing:
        return size * options.max_length, options.max_length
    side_by_side = math.ceil(sizes.longest + (size - 1) * sizes.tokens / max(sizes.rows, 1))
    if side_by_side <= SIDE_BY_SIDE_TOKENS:
        return min(side_by_side, size * sizes.longest), side_by_side
    return size * sizes.longest, sizes.longest


def _seconds(facts: ModelFacts, options: FinetuneOptions, sizes: RowSizes, machine: Machine) -> float:
    batch = options.per_device_train_batch_size * options.gradient_accumulation_steps * machine.processes
    rounds = min(options.num_train_epochs * sizes.rows, steps_of(options, sizes.rows, machine.processes) * batch)
    tokens = rounds * sizes.tokens / max(sizes.rows, 1)
    twice = {"on": True, "off": False, "auto": bool(machine.gpu)}[options.gradient_checkpointing]
    each = GPU_SECONDS_A_TOKEN_AND_PARAMETER / machine.processes if machine.gpu else SECONDS_A_TOKEN_AND_PARAMETER
    return START_SECONDS + tokens * facts.parameters * each * (AGAIN if twice else 1)


def _width(options: FinetuneOptions) -> int:
    """Return the bytes of a number that is computed with."""
    return 4 if options.bnb_4bit_compute_dtype == "float32" else 2
