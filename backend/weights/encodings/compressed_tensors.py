"""compressed-tensors: what RedHat, Kimi and others ship, from integers of 2 bits to floats of 8.

Layout and arithmetic: the compressors `pack_quantized`, `naive_quantized`, `mxfp4` and `nvfp4` of release 0.20 of
github.com/vllm-project/compressed-tensors. Packed integers are a stream of bits along a row, which ends in a whole word.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from backend.errors import SpecError
from backend.strict_json import quoted
from backend.weights.encodings import fp8
from backend.weights.encodings.encoding import Encoding, Found, damaged, sizes
from backend.weights.encodings.scaled import Scaled
from backend.weights.floats import FLOATS
from backend.weights.tensor import Tensor

BITS = range(2, 9)
"""Of packed integers that are read."""

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


class _Known(NamedTuple):
    """What is known of a checkpoint beside the tensors of a layer."""

    groups: list[dict[str, Any]]  # settings of the weights of each group of layers
    lengths: frozenset[int]  # sizes that tensors have: the length of a row is most often one of them
    current: bool  # whether a release wrote it that lets codes of 3, 5, 6 and 7 bits cross words


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
    known = _Known(groups, _lengths(tensors), _is_current(settings.get("version")))
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
    return [group for group in found if group.get("weights")]  # others encode activations alone


def _kind(weights: Mapping[str, Any], form: Any) -> str | None:
    """Say what the weights of a group of layers are; None where they are not read here."""
    bits, kind = weights.get("num_bits"), weights.get("type", "int")
    if type(bits) is not int:
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


def _is_current(version: Any) -> bool:
    """Return whether a release lets codes cross words, as those since 0.18 do."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})\b", version) if isinstance(version, str) else None
    return found is not None and (int(found[1]), int(found[2])) >= (0, 18)


def _part(tensor: Tensor) -> str:
    return tensor.name.rpartition(".")[2]


def _is_codes(tensor: Tensor) -> bool:
    plain = tensor.name.endswith(".weight") and tensor.dtype in (*fp8.CODES, "I8")
    return plain or tensor.name.endswith(".weight_packed")


def _is_unused(tensor: Tensor) -> bool:
    """Return whether only kernels read a tensor; floats of 8 bits have no zero but 0, which some releases saved."""
    zero_of_floats = tensor.name.endswith(".weight_zero_point") and tensor.dtype in fp8.CODES
    return tensor.name.endswith(_UNUSED) or zero_of_floats


def _encoded(weight: Tensor, tensors: Mapping[str, Tensor], known: _Known, dtype: str) -> Scaled:
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


def _packed(weight: Tensor, scale: Tensor, tensors: Mapping[str, Tensor], known: _Known, dtype: str) -> Scaled:
    """Return integers in words of 32 bits; zeros are packed along the rows where weights are packed along columns."""
    base = weight.name.removesuffix("_packed")
    bits, columns = _packing(weight, scale, known)
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
    symmetric = [g.get("symmetric", True) for g in groups if g["num_bits"] == bits and _is_integers(g)]
    if weight.dtype in ("I8", "I32") and symmetric and not any(symmetric):
        raise damaged(weight, f"lacks its zeros, {quoted(name)}")
    return None


def _grid(weight: Tensor, scale: Tensor, groups: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Return the rows and columns that share a scale: of all groups of layers, the blocks that fit its shape."""
    rows, columns = weight.shape
    blocks = [block for group in groups if (block := fp8.pair(group.get("block_structure")))]
    fits = [(down, across) for down, across in blocks if scale.shape == (-(-rows // down), -(-columns // across))]
    return fp8.grid(weight, scale, fits[0] if fits else None)


def _packing(weight: Tensor, scale: Tensor, known: _Known) -> tuple[int, int]:
    """Return the bits of a code and the columns of a packed matrix: of all groups of layers, what fits its shapes.

    The last word of a row may have room for more codes. Scales of groups say how many columns there are; without them
    it is a length that other tensors have, or else what there is room for.

    Raises:
        SpecError: None fits, or several do, or an old release may have packed the codes.
    """
    width = weight.shape[1]
    certain, likely, old = set(), set(), False
    for group in known.groups:
        bits, size = group["num_bits"], _size(group)
        if weight.dtype != "I32" or not _is_integers(group):
            continue
        lengths = frozenset({scale.shape[-1] * size}) if size and scale.shape else known.lengths
        fits = lengths.intersection(range((width - 1) * 32 // bits + 1, width * 32 // bits + 1))
        doubtful = _once_packed(lengths, width, bits)
        if fits and (known.current or not fits & doubtful):
            certain.add((bits, max(fits)))
        elif doubtful:
            old = True
        elif not size:
            likely.add((bits, width * 32 // bits))
    found = certain or likely
    if len(found) == 1:
        return found.pop()
    if old:
        raise SpecError(
            f"{quoted(weight.name)} may be packed as compressed-tensors did before 0.18, which is not read here: choose"
            " the original, or have it quantized by a newer release."
        )
    raise damaged(weight, f"has {sizes(weight.shape)} words with {sizes(scale.shape)} scales, which fits no grid")


def _size(group: Mapping[str, Any]) -> int:
    """Return how many columns share a scale; 0: all of them."""
    size = group.get("group_size")
    size = size if type(size) is int and size > 0 else 0
    return size if group.get("strategy", "group") == "group" else 0


def _is_integers(group: Mapping[str, Any]) -> bool:
    return group.get("type", "int") == "int"


def _once_packed(lengths: frozenset[int], width: int, bits: int) -> frozenset[int]:
    """Return the lengths of rows that releases before 0.18 put into as many words, but each code into one of them."""
    each = 32 // bits
    if 32 % bits == 0 or width == 1:
        return frozenset()
    return lengths.intersection(range((width - 1) * each + 1, width * each + 1))


ENCODING = Encoding(words, find)
