"""FP8: 8-bit floating-point matrices with a scale for each block, row or tensor, as DeepSeek, Qwen and Mistral ship.

DeepSeek V4 has its experts in 4 bits beside them, two in a byte, with a power of two for each 32.
Layout and arithmetic: transformers' `finegrained_fp8` (`Fp8Dequantize`) and `fbgemm_fp8`. Where a matrix is no multiple
of its blocks, the last block of a row or column is the smaller one, as in DeepSeek's own `weight_dequant`.
"""

import math
from collections.abc import Mapping
from typing import Any

from backend.strict_json import quoted
from backend.weights.encodings.encoding import LONGEST_ROW, Encoding, Found, damaged, sizes
from backend.weights.encodings.scaled import Scaled
from backend.weights.floats import EIGHT_BITS, FLOATS
from backend.weights.tensor import Tensor

CODES = ("F8_E4M3", "F8_E5M2")

_OF_WEIGHT = ("_scale_inv", "_scale")
_OF_LAYER = (".scale", ".qscale_weight")
"""Ends of the names of scales, behind a weight's name and behind its layer's."""

_UNUSED = (
    "activation_scale", ".input_scale", ".output_scale", ".qscale_act", ".input_scale_ub", ".q_scale", ".k_scale",
    ".v_scale",
)  # fmt: skip
"""Ends of the names of what scales activations and the cache."""


def words(settings: Mapping[str, Any]) -> str | None:
    """Say how large the blocks are."""
    block = pair(settings.get("weight_block_size"))
    return f"FP8 in blocks of {sizes(block)}" if block else "FP8"


def find(tensors: Mapping[str, Tensor], settings: Mapping[str, Any], dtype: str) -> Found:
    """Find the matrices in 8 bits and their scales.

    Args:
        tensors: Of a checkpoint, by name.
        settings: Its quantization_config.
        dtype: The type that they are decoded to.

    Raises:
        SpecError: A scale is missing, is left over, or has another shape.
    """
    block = pair(settings.get("weight_block_size"))
    kinds = {kind: kind for kind in CODES} | ({"I8": "F4"} if settings.get("expert_dtype") == "fp4" else {})
    found = [(t, kinds[t.dtype]) for t in tensors.values() if t.dtype in kinds]
    encoded = tuple(_scaled(weight, kind, tensors, block, dtype) for weight, kind in found)
    unused = tuple(tensor for tensor in tensors.values() if tensor.name.endswith(_UNUSED))
    known = {part.name for one in encoded for part in one.parts} | {tensor.name for tensor in unused}
    for tensor in tensors.values():
        if tensor.name.endswith((*_OF_WEIGHT, _OF_LAYER[-1])) and tensor.name not in known:
            raise damaged(tensor, "scales weights that are not there in 8 bits")
    return Found(encoded, unused)


def grid(weight: Tensor, scale: Tensor, block: tuple[int, int] | None) -> tuple[int, int]:
    """Return the rows and columns that share a scale.

    Args:
        weight: [..., rows, columns].
        scale: [..., rows of blocks, columns of blocks]; of a whole tensor one number.
        block: As the config says it, if it does.

    Raises:
        SpecError: The scale has another shape, or there is nothing to scale.
    """
    *matrices, rows, columns = weight.shape
    if not weight.elements or columns > LONGEST_ROW:
        raise damaged(weight, f"has {sizes(weight.shape)} numbers, which is no matrix that is read here")
    shape = scale.shape if len(scale.shape) > 1 else (*scale.shape, 1)
    if scale.elements == 1:
        return math.prod(weight.shape[:-1]), columns
    if list(shape[:-2]) == matrices and len(shape) > 1 and scale.elements:
        down, across = shape[-2:]
        if block and (down, across) == (-(-rows // block[0]), -(-columns // block[1])):
            return block
        if rows % down == 0 and columns % across == 0:
            return rows // down, columns // across
    raise damaged(scale, f"has {sizes(scale.shape)} scales for {sizes(weight.shape)} weights")


def pair(said: Any) -> tuple[int, int] | None:
    """Return the rows and columns of a block, if settings say them."""
    if isinstance(said, list) and len(said) == 2 and all(type(size) is int and size > 0 for size in said):
        return said[0], said[1]
    return None


def _scaled(
    weight: Tensor, kind: str, tensors: Mapping[str, Tensor], block: tuple[int, int] | None, dtype: str
) -> Scaled:
    names = [weight.name + end for end in _OF_WEIGHT]
    names += [weight.name.removesuffix(".weight") + end for end in _OF_LAYER]
    scale = next((tensors[name] for name in names if name in tensors), None)
    if scale is None or len(weight.shape) < 2:
        raise damaged(weight, f"is a matrix in 8 bits without its scale, {quoted(names[0])}")
    if scale.dtype not in FLOATS and scale.dtype not in (*EIGHT_BITS, "U8"):
        raise damaged(scale, f"holds scales of the type {scale.dtype}")
    columns = weight.shape[-1] * (2 if kind == "F4" else 1)
    dense = weight.model_copy(update={"dtype": dtype, "shape": (*weight.shape[:-1], columns)})
    return Scaled(dense, weight, scale, grid(dense, scale, block), kind)


ENCODING = Encoding(words, find)
