"""What a calibrated quantization will need, before it starts: memory by part, and time, from the headers alone."""

from typing import NamedTuple

from backend.models.config import longest_window
from backend.models.facts import ModelFacts
from backend.quantize.calibrated.engine import BATCH
from backend.quantize.calibrated.options import CalibratedOptions
from backend.weights.anatomy import TRANSPOSED, block_of

# From the demo model on 2 cores of an AVX-512 server, torch 2.13, transformers 5.23: 32 windows of 512 tokens.
PROCESS_BYTES = 690_000_000  # Python with torch and transformers
START_SECONDS = 10.0
FORWARD_SECONDS = 5.5e-12  # a token and quantized parameter: two forwards in bfloat16
GRAM_SECONDS = 1.0e-11  # a token and number of the Gram matrices, in float32
SOLVE_SECONDS = 4.0e-10  # a quantized parameter and input that it shares its Gram matrix with


class CalibratedCost(NamedTuple):
    """Bytes and seconds."""

    memory: int
    seconds: float


def calibrated_cost(facts: ModelFacts, options: CalibratedOptions) -> CalibratedCost:
    """Estimate with a block at a time, its activations, and what lies in no block once.

    Args:
        facts: Of the model, with its tensors.
        options: What is done.
    """
    turned = facts.model_type in TRANSPOSED
    layers = [t for t in facts.tensors if not options.skips(t)]
    tokens = options.num_calibration_samples * longest_window(facts.config, options.max_seq_length)
    blocks: dict[int, int] = {}
    for tensor in facts.tensors:
        blocks[block_of(tensor.name)] = blocks.get(block_of(tensor.name), 0) + tensor.elements
    outside, largest = blocks.get(-1, 0), max((n for i, n in blocks.items() if i >= 0), default=0)
    widths = [(t.elements, t.shape[0 if turned else 1]) for t in layers]
    widest, height = max(n for _, n in widths), max(t.shape[1 if turned else 0] for t in layers)
    width = 4 if facts.dtype == "float32" else 2
    activations = width * tokens * facts.hidden_size
    block = (width + 3 * 4) * largest + 6 * 4 * widest**2  # itself, in float32 thrice; the Gram matrix and its root
    batch = 3 * 4 * BATCH * max(widest, height)
    grams = 0.6 * sum({(block_of(t.name), n): n * n for t, (_, n) in zip(layers, widths, strict=True)}.values())
    seconds = tokens * (FORWARD_SECONDS * sum(n for n, _ in widths) + GRAM_SECONDS * grams)
    seconds += SOLVE_SECONDS * sum(n * inputs for n, inputs in widths)
    memory = PROCESS_BYTES + activations + max(block + batch, width * outside)
    return CalibratedCost(memory, START_SECONDS + seconds)
