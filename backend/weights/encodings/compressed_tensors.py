"""compressed-tensors: integers packed into 32 bits, or of 8 bits, and 8-bit floats, as RedHat, Kimi and others ship.

Layout and arithmetic: `pack_quantized` and `naive_quantized` of github.com/vllm-project/compressed-tensors.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from backend.strict_json import quoted
from backend.weights.encodings import fp8
from backend.weights.encodings.encoding import Encoding, Found, damaged, sizes
from backend.weights.encodings.scaled import Scaled
from backend.weights.floats import FLOATS
from backend.weights.tensor import Tensor

BITS = (2, 4, 8)
"""Of packed codes that are read: releases of the package pack others in two ways."""

_PACKED, _PLAIN = "pack-quantized", ("float-quantized", "int-quantized", "naive-quantized")

_UNUSED = (
    ".input_scale", ".input_zero_point", ".input_global_scale", ".output_scale", ".output_zero_point", ".q_scale",
    ".k_scale", ".v_scale", ".k_zero_point", ".v_zero_point",
)  # fmt: skip
"""Ends of the names of what scales activations and the cache."""

_PARTS = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx", "weight_global_scale")


def words(settings: Mapping[str, Any]) -> str | None:
    """Say the bits and the kind of number; None where a part of the weights is not read here."""
    groups = _groups(settings)
    sparse = settings.get("sparsity_config")
    dense = not isinstance(sparse, dict) or sparse.get("format", "dense") == "dense"
    whole = dense and not settings.get("transform_config")
    if not groups or not whole or settings.get("quantization_status", "compressed") != "compressed":
        return None
    if not all(_is_read(group, settings.get("format")) for group in groups):
        return None
    weights = [group["weights"] for group in groups]
    kinds = {f"{w.get('num_bits')}-bit {'floats' if w.get('type') == 'float' else 'integers'}" for w in weights}
    return f"{' and '.join(sorted(kinds))} (compressed-tensors)"


def find(tensors: Mapping[str, Tensor], settings: Mapping[str, Any], dtype: str) -> Found:
    """Find the codes and what belongs to them; see fp8.find().

    Raises:
        SpecError: A part is missing, is left over, or has another shape.
    """
    groups = [group["weights"] for group in _groups(settings)]
    encoded = tuple(_encoded(tensor, tensors, groups, dtype) for tensor in tensors.values() if _is_codes(tensor))
    unused = tuple(tensor for tensor in tensors.values() if _is_unused(tensor))
    known = {part.name for one in encoded for part in one.parts} | {tensor.name for tensor in unused}
    for tensor in tensors.values():
        if tensor.name.rpartition(".")[2] in _PARTS and tensor.name not in known:
            raise damaged(tensor, "belongs to weights that are not there in 8 or 4 bits")
    return Found(encoded, unused)


def _groups(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the settings of groups of layers; none where they are not said one by one."""
    groups = settings.get("config_groups")
    found = list(groups.values()) if isinstance(groups, dict) else []
    return found if all(isinstance(g, dict) and isinstance(g.get("weights"), dict) for g in found) else []


def _is_read(group: Mapping[str, Any], overall: Any) -> bool:
    bits, kind = group["weights"].get("num_bits"), group["weights"].get("type", "int")
    form = group.get("format") or overall
    whole = type(bits) is int
    return whole and ((form == _PACKED and kind == "int" and bits in BITS) or (form in _PLAIN and bits == 8))


def _is_codes(tensor: Tensor) -> bool:
    plain = tensor.name.endswith(".weight") and tensor.dtype in (*fp8.CODES, "I8")
    return plain or tensor.name.endswith(".weight_packed")


def _is_unused(tensor: Tensor) -> bool:
    """Return whether only kernels read a tensor; floats of 8 bits have no zero but 0, which some releases saved."""
    zero_of_floats = tensor.name.endswith(".weight_zero_point") and tensor.dtype in fp8.CODES
    return tensor.name.endswith(_UNUSED) or zero_of_floats


def _encoded(weight: Tensor, tensors: Mapping[str, Tensor], groups: Sequence[Mapping[str, Any]], dtype: str) -> Scaled:
    base = weight.name.removesuffix("_packed")
    scale, zero = tensors.get(f"{base}_scale"), tensors.get(f"{base}_zero_point")
    zero = None if zero and _is_unused(zero) else zero
    if scale is None:
        raise damaged(weight, f"lacks its scale, {quoted(base + '_scale')}")
    if scale.dtype not in FLOATS or len(weight.shape) != 2:
        raise damaged(scale, f"holds {scale.dtype} for weights of {sizes(weight.shape)}")
    if weight.name == base:
        dense = weight.model_copy(update={"dtype": dtype})
        if zero and (zero.dtype != "I8" or zero.shape != scale.shape):
            raise damaged(zero, f"has {sizes(zero.shape)} zeros of the type {zero.dtype} for {sizes(scale.shape)}")
        return Scaled(dense, weight, scale, _grid(weight, scale, groups), zero=zero, through=scale.dtype)
    bits, columns = _packing(weight, scale, groups)
    dense = Tensor(name=base, dtype=dtype, shape=(weight.shape[0], columns))
    block = fp8.grid(dense, scale, None)
    wanted = (-(-weight.shape[0] * bits // 32), -(-columns // block[1]))
    if zero and (zero.dtype != "I32" or zero.shape != wanted or block[0] != 1):
        raise damaged(zero, f"has {sizes(zero.shape)} words of zeros where {sizes(wanted)} belong")
    said = tensors.get(f"{base}_shape")
    if said and (said.dtype not in ("I32", "I64") or said.elements != len(dense.shape)):
        raise damaged(said, f"has {sizes(said.shape)} numbers of the type {said.dtype}, which is no shape")
    return Scaled(dense, weight, scale, block, bits=bits, zero=zero, said=said, through=scale.dtype)


def _grid(weight: Tensor, scale: Tensor, groups: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Return the rows and columns that share a scale: of all groups of layers, the blocks that fit its shape."""
    rows, columns = weight.shape
    blocks = [block for group in groups if (block := fp8.pair(group.get("block_structure")))]
    fits = [(down, across) for down, across in blocks if scale.shape == (-(-rows // down), -(-columns // across))]
    return fp8.grid(weight, scale, fits[0] if fits else None)


def _packing(weight: Tensor, scale: Tensor, groups: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Return the bits of a code and the columns of a packed matrix: of all groups of layers, what fits its shapes.

    Raises:
        SpecError: None fits, or several do.
    """
    found = set()
    for group in groups:
        bits, size = group["num_bits"], group.get("group_size")
        size = size if type(size) is int and size > 0 else 0
        columns = weight.shape[1] * 32 // bits
        if group.get("strategy", "group" if size else "channel") == "group":
            columns = scale.shape[-1] * size if scale.shape else 0
        if weight.dtype == "I32" and columns and -(-columns * bits // 32) == weight.shape[1]:
            found.add((bits, columns))
    if len(found) != 1:
        raise damaged(weight, f"has {sizes(weight.shape)} words with {sizes(scale.shape)} scales, which fits no grid")
    return found.pop()


ENCODING = Encoding(words, find)
