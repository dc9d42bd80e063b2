"""compressed-tensors: what RedHat, Kimi and others ship, from integers of 2 bits to floats of 8.

Layout and arithmetic: the compressors `pack_quantized`, `naive_quantized`, `mxfp4` and `nvfp4` of release 0.20 of
github.com/vllm-project/compressed-tensors.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from backend.strict_json import quoted
from backend.weights.encodings import fp8
from backend.weights.encodings.encoding import Encoding, Found, damaged, sizes
from backend.weights.encodings.packing import BITS, Known, is_current, is_integers, packing
from backend.weights.encodings.scaled import Scaled
from backend.weights.floats import FLOATS
from backend.weights.tensor import Tensor

_PACKED, _PLAIN = "pack-quantized", ("float-quantized", "int-quantized", "naive-quantized")

_FOUR_BITS = {"mxfp4-pack-quantized": ("MXFP4", 32), "nvfp4-pack-quantized": ("NVFP4", 16)}
"""Formats of 4-bit floats: their names, and how many numbers share a scale."""

_UNUSED = (
    ".input_scale", ".input_zero_point", ".input_global_scale", ".output_scale", ".output_zero_point", ".q_scale",
    ".k_scale", ".v_scale", ".q_zero_point", ".k_zero_point", ".v_zero_point", ".q_global_scale", ".k_global_scale",
    ".v_global_scale",
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
    kinds = [_kind(group["weights"], group.get("format") or settings.get("format")) for group in groups]
    return None if None in kinds else f"{' and '.join(sorted({str(kind) for kind in kinds}))} (compressed-tensors)"


def find(tensors: Mapping[str, Tensor], settings: Mapping[str, Any], dtype: str) -> Found:
    """Find the codes and what belongs to them; see fp8.find().

    Raises:
        SpecError: A part is missing, is left over, or has another shape.
    """
    groups = [group["weights"] for group in _groups(settings)]
    known = Known(groups, _lengths(tensors), is_current(settings.get("version")))
    encoded = tuple(_encoded(tensor, tensors, known, dtype) for tensor in tensors.values() if _is_codes(tensor))
    unused = tuple(tensor for tensor in tensors.values() if _is_unused(tensor))
    placed = {part.name for one in encoded for part in one.parts} | {tensor.name for tensor in unused}
    for tensor in tensors.values():
        if _part(tensor) in _PARTS and tensor.name not in placed:
            raise damaged(tensor, "belongs to weights that are not there in 8 bits or fewer")
    return Found(encoded, unused)


def _groups(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the settings of groups of layers whose weights are encoded; none where they are not said one by one."""
    groups = settings.get("config_groups")
    found = list(groups.values()) if isinstance(groups, dict) else []
    if not all(isinstance(group, dict) and isinstance(group.get("weights"), dict | None) for group in found):
        return []
    return [group for group in found if group.get("weights") is not None]  # others encode activations alone


def _kind(weights: Mapping[str, Any], form: Any) -> str | None:
    """Say what the weights of a group of layers are; None where they are not read here."""
    bits, kind = weights.get("num_bits"), weights.get("type", "int")
    if type(bits) is not int or not isinstance(form, str):
        return None
    if form in _FOUR_BITS:
        name, size = _FOUR_BITS[form]
        return name if (bits, kind, weights.get("group_size")) == (4, "float", size) else None
    if (form == _PACKED and kind == "int" and bits in BITS) or (form in _PLAIN and bits == 8):
        return f"{bits}-bit {'floats' if kind == 'float' else 'integers'}"
    return None


def _lengths(tensors: Mapping[str, Tensor]) -> frozenset[int]:
    """Return the sizes of tensors, of packed matrices as far as they are not packed."""
    rows = {tensor.shape[0] for tensor in tensors.values() if _part(tensor) == "weight_packed" and tensor.shape}
    return frozenset(rows.union(*(tensor.shape for tensor in tensors.values() if _part(tensor) not in _PARTS)))


def _part(tensor: Tensor) -> str:
    return tensor.name.rpartition(".")[2]


def _is_codes(tensor: Tensor) -> bool:
    plain = tensor.name.endswith(".weight") and tensor.dtype in (*fp8.CODES, "I8")
    return plain or tensor.name.endswith(".weight_packed")


def _is_unused(tensor: Tensor) -> bool:
    """Return whether only kernels read a tensor; floats of 8 bits have no zero but 0, which some releases saved."""
    zero_of_floats = tensor.name.endswith(".weight_zero_point") and tensor.dtype in fp8.CODES
    return tensor.name.endswith(_UNUSED) or zero_of_floats


def _encoded(weight: Tensor, tensors: Mapping[str, Tensor], known: Known, dtype: str) -> Scaled:
    base = weight.name.removesuffix("_packed")
    scale = tensors.get(f"{base}_scale")
    if scale is None:
        raise damaged(weight, f"lacks its scale, {quoted(base + '_scale')}")
    if weight.name != base and weight.dtype == "U8":
        return _four_bits(weight, scale, tensors, known.groups, dtype)
    if scale.dtype not in FLOATS or len(weight.shape) != 2:
        raise damaged(scale, f"holds {scale.dtype} for weights of {sizes(weight.shape)}")
    if weight.name != base:
        return _packed(weight, scale, tensors, known, dtype)
    zero = _zero(weight, tensors, known.groups, 8)
    if zero and (zero.dtype != "I8" or zero.shape != scale.shape):
        raise damaged(zero, f"has {sizes(zero.shape)} zeros of the type {zero.dtype} for {sizes(scale.shape)}")
    dense = weight.model_copy(update={"dtype": dtype})
    return Scaled(dense, weight, scale, _grid(weight, scale, known.groups), zero=zero, through=scale.dtype)


def _packed(weight: Tensor, scale: Tensor, tensors: Mapping[str, Tensor], known: Known, dtype: str) -> Scaled:
    """Return integers in words of 32 bits; zeros are packed along the rows where weights are packed along columns."""
    base = weight.name.removesuffix("_packed")
    bits, columns = packing(weight, scale, known)
    dense = Tensor(name=base, dtype=dtype, shape=(weight.shape[0], columns))
    block = fp8.grid(dense, scale, None)
    wanted = (-(-weight.shape[0] * bits // 32), -(-columns // block[1]))
    zero = _zero(weight, tensors, known.groups, bits)
    if zero and (zero.dtype != "I32" or zero.shape != wanted or block[0] != 1):
        raise damaged(zero, f"has {sizes(zero.shape)} words of zeros where {sizes(wanted)} belong")
    said = tensors.get(f"{base}_shape")
    if said and (said.dtype not in ("I32", "I64") or said.elements != len(dense.shape)):
        raise damaged(said, f"has {sizes(said.shape)} numbers of the type {said.dtype}, which is no shape")
    return Scaled(dense, weight, scale, block, bits=bits, zero=zero, said=said, through=scale.dtype)


def _four_bits(
    weight: Tensor, scale: Tensor, tensors: Mapping[str, Tensor], groups: Sequence[Mapping[str, Any]], dtype: str
) -> Scaled:
    """Return floats of 4 bits, which the package makes bfloat16 whatever the model is."""
    base = weight.name.removesuffix("_packed")
    size = {"U8": 32, "F8_E8M0": 32, "F8_E4M3": 16}.get(scale.dtype)
    if size is None or len(weight.shape) != 2:
        raise damaged(scale, f"holds {scale.dtype} for weights of {sizes(weight.shape)}")
    dense = Tensor(name=base, dtype=dtype, shape=(weight.shape[0], 2 * weight.shape[1]))
    said = any(group.get("type") == "float" and group.get("group_size") == size for group in groups)
    if not said or fp8.grid(dense, scale, (1, size)) != (1, size):
        raise damaged(
            scale, f"has {sizes(scale.shape)} scales of the type {scale.dtype} for {sizes(dense.shape)} weights"
        )
    over = tensors.get(f"{base}_global_scale") if size == 16 else None
    if size == 16 and over is None:
        raise damaged(weight, f"lacks its global scale, {quoted(base + '_global_scale')}")
    if over and (over.dtype != "F32" or over.shape != (1,)):
        raise damaged(over, f"has {sizes(over.shape)} numbers of the type {over.dtype} where one of F32 belongs")
    return Scaled(dense, weight, scale, (1, size), "F4", over=over, through="BF16")


def _zero(
    weight: Tensor, tensors: Mapping[str, Tensor], groups: Sequence[Mapping[str, Any]], bits: int
) -> Tensor | None:
    """Return the codes that stand for 0, if there are any.

    Raises:
        SpecError: There are none, and the grids are said not to be symmetric.
    """
    name = weight.name.removesuffix("_packed") + "_zero_point"
    found = tensors.get(name)
    if found and not _is_unused(found):
        return found
    symmetric = [g.get("symmetric", True) for g in groups if g["num_bits"] == bits and is_integers(g)]
    if weight.dtype in ("I8", "I32") and symmetric and not any(symmetric):
        raise damaged(weight, f"lacks its zeros, {quoted(name)}")
    return None


def _grid(weight: Tensor, scale: Tensor, groups: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Return the rows and columns that share a scale: of all groups of layers, the blocks that fit its shape."""
    rows, columns = weight.shape
    blocks = [block for group in groups if (block := fp8.pair(group.get("block_structure")))]
    fits = [(down, across) for down, across in blocks if scale.shape == (-(-rows // down), -(-columns // across))]
    return fp8.grid(weight, scale, fits[0] if fits else None)


ENCODING = Encoding(words, find)
