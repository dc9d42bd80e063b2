"""Integers in words of 32 bits: how many bits each has and how many are in a row, as shapes and settings tell.

Layout: `pack_to_int32` of compressed-tensors. Codes are a stream of bits along a row, which ends in a whole word.
Before release 0.18 no code was in two words: those of 3, 5, 6 and 7 bits left the last bits of each unused.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from backend.errors import SpecError
from backend.strict_json import quoted
from backend.weights.encodings.encoding import damaged, sizes
from backend.weights.tensor import Tensor

BITS = range(2, 9)
"""That codes may have."""


class Known(NamedTuple):
    """What is known of a checkpoint beside the tensors of a layer."""

    groups: list[dict[str, Any]]  # settings of the weights of each group of layers
    lengths: frozenset[int]  # sizes that tensors have: the length of a row is most often one of them
    current: bool  # whether a release wrote it that lets codes of 3, 5, 6 and 7 bits cross words


def is_current(version: Any) -> bool:
    """Return whether a release lets codes cross words, as those since 0.18 do."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})\b", version) if isinstance(version, str) else None
    return found is not None and (int(found[1]), int(found[2])) >= (0, 18)


def is_integers(group: Mapping[str, Any]) -> bool:
    """Return whether settings speak of integers."""
    return bool(group.get("type", "int") == "int")


def packing(weight: Tensor, scale: Tensor, known: Known) -> tuple[int, int]:
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
        if weight.dtype != "I32" or not is_integers(group):
            continue
        lengths = frozenset(groups * size for groups in scale.shape[-1:]) if size else known.lengths
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


def _once_packed(lengths: frozenset[int], width: int, bits: int) -> frozenset[int]:
    """Return the lengths of rows that releases before 0.18 put into as many words, in another way."""
    each = 32 // bits
    if 32 % bits == 0 or width == 1:
        return frozenset()
    return lengths.intersection(range((width - 1) * each + 1, width * each + 1))
