"""What a stage will need, before anything runs: bytes from the headers, time from what was measured on two cores."""

from typing import Any

from pydantic import Field

from backend.models.facts import ModelFacts
from backend.options import Frozen

# Measured with the demo model on 2 cores of an AVX-512 server, torch 2.13: see `make demo`.
QUANTIZE_BYTES = 200_000_000  # Python with numba, and pieces of a tensor
QUANTIZE_SECONDS = 2.0  # the start of the process
QUANTIZE_PARAMETERS_A_SECOND = 120e6
EVALUATE_BYTES = 620_000_000  # Python with torch, transformers and bitsandbytes
EVALUATE_SECONDS = 8.0  # their import
EVALUATE_SECONDS_A_TOKEN_AND_PARAMETER = 2.4e-11  # both models, forward
TOKENIZER_BYTES = 4_000_000


class Estimate(Frozen):
    """What stages need; sizes in bytes, time in seconds."""

    output_bytes: int = Field(description="Of the result, with its tokenizer.")
    peak_memory_bytes: int
    disk_bytes: int = Field(description="Download and result together.")
    seconds: float = Field(description="A rough figure for a machine with two cores.")


def estimate(facts: ModelFacts, *stages: Any) -> Estimate:
    """Add up what stages need for a model.

    Args:
        facts: Of the base model, with its tensors.
        stages: Option models of a recipe's stages, in order.
    """
    output, seconds, memory = 0, 0.0, 0
    for stage in stages:
        if stage.stage == "evaluate":
            tokens = stage.max_seq_length * stage.num_samples
            seconds += EVALUATE_SECONDS + tokens * facts.parameters * EVALUATE_SECONDS_A_TOKEN_AND_PARAMETER
            logits = 4 * stage.max_seq_length * facts.vocab_size * 2
            memory = max(memory, EVALUATE_BYTES + facts.size + output + logits)
        else:
            size = result_bytes(facts, stage) if stage.stage != "merge" or stage.keep else 0
            output += size
            seconds += QUANTIZE_SECONDS + facts.parameters / QUANTIZE_PARAMETERS_A_SECOND
            scales = max((t.elements for t in facts.tensors if t.is_linear), default=0) // 16
            memory = max(memory, QUANTIZE_BYTES + scales)
    return Estimate(
        output_bytes=output, peak_memory_bytes=memory, disk_bytes=facts.download + output, seconds=round(seconds, 1)
    )


def result_bytes(facts: ModelFacts, options: Any) -> int:
    """Give the bytes of one quantized model with its tokenizer."""
    files: dict[str, int] = options.plan(facts.tensors, facts.config).files
    return sum(files.values()) + TOKENIZER_BYTES
