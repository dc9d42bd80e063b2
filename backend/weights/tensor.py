"""Tensor: what a safetensors header says of one, and what it is in a model."""

import math
import re
from collections.abc import Iterable

from pydantic import Field

from backend.options import Frozen

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits an element takes in a safetensors file."""

DTYPES = {
    "BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64", "U8": "uint8", "I8": "int8",
    "I16": "int16", "I32": "int32", "I64": "int64", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}  # fmt: skip
"""Torch's names of types, by those of safetensors."""

_EMBEDDINGS = {
    "embed_tokens", "embed_in", "embeddings", "word_embeddings", "tok_embeddings", "tokens_embed", "wte", "w",
}  # fmt: skip
"""Last part of the names of a model's input embeddings."""

HEADS = {"lm_head", "embed_out", "output_projection", "head"}
"""Last part of the names of a model's output head."""

_NOT_LINEAR = _EMBEDDINGS | HEADS | {
    "embed_tokens_per_layer", "embed_positions", "positions_embed", "encoder_hash_tok_embedding", "wpe", "decoder",
    "gate", "router",
}  # fmt: skip
"""Last part of the names of two-dimensional weights that are no linear layer, or the output head."""

_STACKED = (".input_linear.weight", ".output_linear.weight")
"""Ends of the names of tensors that hold all experts of Granite's and JetMoe's mixtures."""

_FLOATS = ("BF16", "F16", "F32", "F64")

_BLOCK = re.compile(r"(?:[A-Za-z_]\w*\.)+(\d{1,9})\.")
"""The name of a tensor in a block, which is one of a numbered list."""


class Tensor(Frozen):
    """One tensor of a checkpoint."""

    name: str
    dtype: str = Field(description="As safetensors writes it: BF16, F16, F32, I32, U8, …")
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of its data."""
        return self.elements * BITS[self.dtype] // 8

    @property
    def is_linear(self) -> bool:
        """Whether it is the weight of a linear layer between the embeddings and the output head."""
        name = self.name.removesuffix(".weight")
        last = name.removesuffix(".layer").rsplit(".", 1)[-1]  # a router of Granite's is called router.layer
        # transformers keeps the experts of a mixture in one three-dimensional tensor, and calls none of them linear
        if self.dtype not in _FLOATS or self.is_expert:
            return False
        return len(self.shape) == 2 and name != self.name and last not in _NOT_LINEAR

    @property
    def is_expert(self) -> bool:
        """Whether it is a matrix of a mixture's experts, or all of them in one tensor."""
        stacked = len(self.shape) == 3 and self.name.endswith(_STACKED)
        return (".experts." in self.name or stacked) and len(self.shape) > 1 and self.dtype in _FLOATS


def block_of(name: str) -> int:
    """Return the number of the block that a tensor is in; -1 where it is in none."""
    found = _BLOCK.match(name)
    return int(found[1]) if found else -1


def input_embeddings(tensors: Iterable[Tensor]) -> Tensor | None:
    """Return the tensor that turns tokens into numbers, [tokens, width], if it is there."""
    return _outside(tensors, _EMBEDDINGS)


def output_head(tensors: Iterable[Tensor]) -> Tensor | None:
    """Return the tensor that scores tokens, [tokens, width], if it is there; a tied one need not be."""
    return _outside(tensors, HEADS)


def _outside(tensors: Iterable[Tensor], last: set[str]) -> Tensor | None:
    found = [t for t in tensors if len(t.shape) == 2 and t.name.endswith(".weight") and block_of(t.name) < 0]
    return next((tensor for tensor in found if tensor.name.split(".")[-2] in last), None)


TRANSPOSED = ("gpt2", "gpt-sw3", "openai-gpt")
"""Model types that keep the weights of their linear layers as [in, out]; quantized ones are kept as [out, in]."""
