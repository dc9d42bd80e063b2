"""What a calibrated quantization will need, before it starts: memory by part, and time, from the headers alone."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from backend.hub.transfer import size_words
from backend.models.config import longest_window, text_fields
from backend.models.facts import ModelFacts
from backend.models.rewriting import loaded_dtype
from backend.quantize.calibrated.engine import BATCH
from backend.quantize.calibrated.options import CalibratedOptions
from backend.weights.anatomy import block_of, is_beside, is_expert
from backend.weights.tensor import Tensor

# From the demo model on 2 cores of an AVX-512 server, torch 2.13, transformers 5.23: 32 windows of 512 tokens.
PROCESS_BYTES = 690_000_000  # Python with torch and transformers
START_SECONDS = 10.0
FORWARD_SECONDS = 5.5e-12  # a token and quantized parameter: two forwards in bfloat16
GRAM_SECONDS = 1.0e-11  # a token and number of the Gram matrices, in float32
SOLVE_SECONDS = 4.0e-10  # a quantized parameter and input that it shares its Gram matrix with

# Packing the demo model's grids again, on the same machine.
REPACKING_BYTES = 120_000_000  # Python with NumPy
WORDS = 24  # bytes for each number of a layer while it is packed
PACK_SECONDS = 5.0e-9  # a quantized parameter
COPY_SECONDS = 4.0e-9  # a byte of what is not


_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_k", "moe_topk", "top_k")
"""What configs call the number of experts that a token goes through."""

_INPUTS = ("altup_num_inputs", "hc_mult", "hc_count")
"""What configs call the number of inputs that a block has for each token, where it is more than one."""


READ = 32
"""Windows that scales are trained on, at most: with more, it would take longer than the calibration."""

# Training the demo model's scales, on the same machine while others used it too.
LOAD_SECONDS = 2.0  # until the original is in memory, and its integers after it
TRAIN_SECONDS = 3.0e-11  # a token and parameter: the original's forward, the model's twice, and back
NUMBERS = 6 * 4  # bytes for each scale: its value, its change, that one's gradient and moments, and what is stored
LOGITS = 12  # bytes for each next token of a window
INNER = 8  # bytes for each number that a layer of a block takes or gives, of a window's tokens


class Described(Protocol):
    """What a model is known by: its tensors and its config, of Weights and of ModelFacts alike."""

    @property
    def tensors(self) -> Sequence[Tensor]:
        """All of them."""

    @property
    def config(self) -> Mapping[str, Any]:
        """What config.json says."""


class CalibratedCost(NamedTuple):
    """Bytes and seconds."""

    memory: int
    seconds: float


class _Layer(NamedTuple):
    """A linear layer that is packed."""

    block: int
    expert: str  # the expert that it is in, or nothing
    outputs: int
    inputs: int

    @property
    def elements(self) -> int:
        return self.outputs * self.inputs


def calibrated_cost(facts: ModelFacts, options: CalibratedOptions) -> CalibratedCost:
    """Estimate with a block at a time, its activations, and what lies in no block once.

    Of a mixture's experts a block is in memory as it is, and one expert at a time as it is computed.

    Args:
        facts: Of the model, with its tensors.
        options: What is done.
    """
    layers = _layers(facts, options)
    tokens = options.num_calibration_samples * longest_window(facts.config, options.max_seq_length)
    width = 4 if facts.dtype == "float32" else 2
    blocks: dict[int, int] = {}
    experts: dict[int, int] = {}
    for tensor in facts.tensors:
        counted = experts if is_expert(tensor) else blocks
        if not is_beside(tensor.name):
            counted[block_of(tensor.name)] = counted.get(block_of(tensor.name), 0) + tensor.elements
    outside = blocks.pop(-1, 0)
    widest, height = max(n.inputs for n in layers), max(n.outputs for n in layers)
    single = max((n.elements for n in layers if n.expert), default=0)
    activations = width * tokens * _numbers(facts) * (2 if experts else 1)
    # a block itself, in float32 thrice; its experts as they are read and stacked; the Gram matrix and its root
    block = max((width + 3 * 4) * n + 2 * width * experts.get(i, 0) for i, n in blocks.items())
    block += 3 * 3 * 4 * single + 6 * 4 * widest**2
    batch = 3 * 4 * BATCH * max(widest, height)
    seconds = tokens * (FORWARD_SECONDS * _used(layers, facts) + GRAM_SECONDS * _grams(layers, facts))
    seconds += SOLVE_SECONDS * sum(n.elements * n.inputs for n in layers)
    memory = PROCESS_BYTES + activations + max(block + batch, width * outside)
    return CalibratedCost(memory, START_SECONDS + seconds)


def refinement_cost(model: Described, options: CalibratedOptions) -> CalibratedCost:
    """Estimate training the scales: the original in memory once, then its integers, and a window at a time.

    Args:
        model: With its tensors.
        options: What is done.
    """
    layers = _layers(model, options)
    width = 4 if loaded_dtype(model.config, model.tensors) == "float32" else 2
    total = sum(tensor.elements for tensor in model.tensors)
    outside = [tensor for tensor in model.tensors if block_of(tensor.name) < 0 and len(tensor.shape) == 2]
    vocabulary, hidden = max((tensor.shape for tensor in outside), key=lambda shape: shape[0])
    length = longest_window(model.config, options.max_seq_length)
    blocks: dict[int, int] = {}
    for layer in layers:
        blocks[layer.block] = blocks.get(layer.block, 0) + layer.outputs + layer.inputs
    scales = sum(n.outputs * (n.inputs // options.group(n.inputs)) for n in layers)
    passing = length * (width * hidden * len(blocks) + INNER * max(blocks.values()) + LOGITS * vocabulary)
    tokens = min(options.num_calibration_samples, READ) * length
    memory = PROCESS_BYTES + width * total + NUMBERS * scales + passing
    return CalibratedCost(memory, LOAD_SECONDS + TRAIN_SECONDS * tokens * total)


def refinement_obstacle(model: Described, options: CalibratedOptions, room: int) -> str | None:
    """Say why the scales of a model cannot be trained, though that is asked for; None where they can.

    Args:
        model: With its tensors.
        options: What is done.
        room: Bytes of the memory that the model is computed in.
    """
    if not options.refines:
        return None
    if any(layer.expert for layer in _layers(model, options)):
        return "The scales are not refined: those of a mixture's experts are not trained here."
    needed = refinement_cost(model, options).memory
    if needed > room:
        return (
            f"The scales are not refined: that takes {size_words(needed)} of memory, and there are {size_words(room)}."
        )
    return None


def repacking_cost(facts: ModelFacts, options: CalibratedOptions) -> CalibratedCost:
    """Estimate packing the grids of another stage.

    The integers of a block lie in memory and of one layer the words, or a tensor outside of blocks while it is hashed.

    Args:
        facts: Of the model, with its tensors.
        options: What is done.
    """
    layers = _layers(facts, options)
    blocks: dict[int, int] = {}
    for layer in layers:
        blocks[layer.block] = blocks.get(layer.block, 0) + layer.elements
    outside = [tensor.bytes for tensor in facts.tensors if block_of(tensor.name) < 0]
    block = max(blocks.values()) + WORDS * max(layer.elements for layer in layers)
    memory = REPACKING_BYTES + max([block, *outside])
    return CalibratedCost(memory, PACK_SECONDS * sum(blocks.values()) + COPY_SECONDS * sum(outside))


def _numbers(facts: ModelFacts) -> int:
    """Return the numbers that a block is given for a token, and that its other blocks will be given beside."""
    fields = text_fields(facts.config)
    inputs = next((fields[name] for name in _INPUTS if type(fields.get(name)) is int), 1)
    beside = fields.get("hidden_size_per_layer_input")
    return facts.hidden_size * inputs + facts.layers * (beside if type(beside) is int else 0)


def _layers(model: Described, options: CalibratedOptions) -> list[_Layer]:
    packing = options.form(model.tensors, model.config)
    packed = [tensor for tensor in packing.layers if not packing.skips(tensor)]
    return [
        _Layer(block_of(matrix.name), ".".join(matrix.name.split(".")[:-2]) if is_expert(tensor) else "", *matrix.shape)
        for tensor in packed
        for matrix in packing.matrices.of(tensor)
    ]


def _share(layers: list[_Layer], facts: ModelFacts) -> float:
    """Return which share of the tokens an expert sees."""
    inner = facts.config.get("text_config")
    said = {**facts.config, **(inner if isinstance(inner, Mapping) else {})}
    chosen = next((said[name] for name in _CHOSEN if type(said.get(name)) is int), 1)
    experts = {(n.block, n.expert) for n in layers if n.expert}
    return chosen * len({block for block, _ in experts}) / max(len(experts), 1)


def _used(layers: list[_Layer], facts: ModelFacts) -> float:
    """Return the parameters that a token goes through."""
    share = _share(layers, facts)
    return sum(n.elements * (share if n.expert else 1) for n in layers)


def _grams(layers: list[_Layer], facts: ModelFacts) -> float:
    """Return the numbers of the Gram matrices that a token adds to."""
    share = _share(layers, facts)
    found = {(n.block, n.expert, n.inputs) for n in layers}
    return sum(inputs**2 * (share if expert else 0.6) for _, expert, inputs in found)
