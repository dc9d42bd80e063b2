"""What a training will need, before it starts: the adapter's bytes from the headers, memory by part, time a token."""

from typing import NamedTuple

from backend.finetune.options import FinetuneOptions
from backend.finetune.slices import parse_split
from backend.models.facts import ModelFacts, Tensor

# From `make demo-tune` on 2 cores of an AVX-512 server, torch 2.13, transformers 5.23, trl 1.16: 4.46 GB and 372 s for
# 100 steps of 8 rows of 52 tokens, validations included. Before anybody has looked at the rows their length is a guess.
PROCESS_BYTES = 900_000_000  # Python with torch, transformers, peft and trl
ADAPTER_BYTES = 16  # a trained parameter: itself, its gradient and AdamW's two moments, in float32
ACTIVATION_BYTES = 140  # a token, layer and unit of the hidden size, with all of a layer kept for the way back
LOGIT_BYTES = 14  # a token of a batch and token of the vocabulary
START_SECONDS = 25.0
SECONDS_A_TOKEN_AND_PARAMETER = 6.2e-11

USUAL_ROW = 64  # tokens
USUAL_ROWS = 1000


class TrainingCost(NamedTuple):
    """Bytes by part, and seconds."""

    process: int
    base: int
    adapter: int
    activations: int
    seconds: float

    @property
    def memory(self) -> int:
        """Bytes of all parts."""
        return self.process + self.base + self.adapter + self.activations


def adapted(facts: ModelFacts, options: FinetuneOptions) -> list[Tensor]:
    """Give the weights of the layers that get an adapter."""
    linears = [tensor for tensor in facts.tensors if tensor.is_linear]
    if options.target_modules == ("all-linear",):
        return linears
    return [tensor for tensor in linears if tensor.name.split(".")[-2] in options.target_modules]


def adapter_parameters(facts: ModelFacts, options: FinetuneOptions) -> int:
    """Count what is trained: of each layer two matrices of the rank, and with DoRA a length for each output."""
    return sum(
        options.r * sum(tensor.shape) + (tensor.shape[0] if options.use_dora else 0)
        for tensor in adapted(facts, options)
    )


def rows_of(options: FinetuneOptions) -> float:
    """Give the rows that are trained on, as far as the split says so."""
    _, part = parse_split(options.split)
    first, last = (0, None) if part.needs_total else part.bounds(None)
    rows = USUAL_ROWS if last is None else max(last - first, 0)
    kept_out = options.validation_size
    return max(rows - (kept_out if kept_out >= 1 else kept_out * rows), 1)


def training_cost(facts: ModelFacts, options: FinetuneOptions) -> TrainingCost:
    """Reckon what a training on a CPU needs.

    Args:
        facts: Of the base model.
        options: How it is trained, on which rows.
    """
    batch = options.per_device_train_batch_size * min(options.max_length, USUAL_ROW * 2)
    layers = 1 if options.gradient_checkpointing == "on" else facts.layers
    width = 4 if options.bnb_4bit_compute_dtype == "float32" else 2
    activations = batch * (ACTIVATION_BYTES * width * layers * facts.hidden_size // 2 + LOGIT_BYTES * facts.vocab_size)
    rounds = options.num_train_epochs * rows_of(options)
    if options.max_steps > 0:
        step = options.per_device_train_batch_size * options.gradient_accumulation_steps
        rounds = min(rounds, options.max_steps * step)
    tokens = rounds * min(options.max_length, USUAL_ROW)
    return TrainingCost(
        process=PROCESS_BYTES,
        base=width * facts.parameters,
        adapter=ADAPTER_BYTES * adapter_parameters(facts, options),
        activations=activations,
        seconds=START_SECONDS + tokens * facts.parameters * SECONDS_A_TOKEN_AND_PARAMETER,
    )
