"""W8A16 and W4A16: integers of 8 or 4 bits by rounding, with a symmetric scale for each group of neighbors.

Format: `pack-quantized` of compressed-tensors, in which GPTQ and AWQ are written too. Several scales are tried of each
group, as they are stored, and the one is kept that loses least.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from backend.models.facts import ModelFacts
from backend.models.rewriting import stream
from backend.quantize.compressed_tensors import Arguments
from backend.quantize.groups import GroupedOptions, fits
from backend.quantize.layouts import compressed_tensors as layout
from backend.quantize.layouts.layout import Matrix, Scheme
from backend.quantize.method import Method
from backend.quantize.scaled import ScaledOptions
from backend.weights.floats import Bytes, Floats, from_float32
from backend.weights.rounding import Rows, encode, magnitudes, stored
from backend.weights.writer import Slot


class IntegerOptions(ScaledOptions, GroupedOptions):
    """Names are those of compressed-tensors' QuantizationArgs."""

    FORMAT: ClassVar[str] = layout.FORMAT
    BITS: ClassVar[int]
    TOPS: ClassVar[tuple[float, ...]]  # what a group's largest magnitude becomes, by the scales that are tried

    method: Literal["w8a16", "w4a16"]

    @property
    def scheme(self) -> Scheme:
        """What all grids have in common."""
        return Scheme(self.BITS, self.group_size)

    @property
    def weights(self) -> Arguments:
        """How weights are quantized."""
        return layout.arguments(self.scheme)

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that share a scale."""
        return 1, self.group_size

    @property
    def choices(self) -> int:
        """Scales that are tried of each group."""
        return len(self.TOPS)

    def holds(self, shape: Sequence[int]) -> bool:
        """Return whether integers of a layer can be packed, and groups divide its inputs."""
        return fits(shape, self.group_size)

    def check(self, facts: ModelFacts) -> None:
        """Refuse what does not fit the model, before anything is downloaded.

        Raises:
            SpecError: As of other codes with scales, and of other groups.
        """
        super().check(facts)
        GroupedOptions.check(self, facts)

    def slots(self, matrix: Matrix, dtype: str) -> list[Slot]:
        """Return the tensors that a matrix becomes."""
        return layout.slots(matrix, self.scheme._replace(dtype=dtype))

    def encode(self, rows: Rows) -> tuple[Bytes, Bytes]:
        """Return codes and scales."""
        tried: Floats = np.divide(magnitudes(rows)[..., None], self.TOPS, dtype=np.float32)
        codes, scales = encode(rows, f"int{self.BITS}", stored(tried, rows.dtype))
        return codes, from_float32(scales, rows.dtype)


class W8A16Options(IntegerOptions):
    """8-bit integers."""

    BITS: ClassVar[int] = 8
    TOPS: ClassVar[tuple[float, ...]] = (127, 128, 129, 130)

    method: Literal["w8a16"] = "w8a16"


class W4A16Options(IntegerOptions):
    """4-bit integers."""

    BITS: ClassVar[int] = 4
    TOPS: ClassVar[tuple[float, ...]] = (7, 7.4, 7.8, 8.2, 8.6, 9, 9.5, 10.2)

    method: Literal["w4a16"] = "w4a16"


W8A16 = Method(
    W8A16Options,
    "W8A16 · 8 bit",
    "Half the size with next to no loss, on any GPU.",
    stream,
)

W4A16 = Method(
    W4A16Options,
    "W4A16 · 4 bit",
    "A quarter of the size in seconds, without calibration data; with it, GPTQ and AWQ lose far less.",
    stream,
)
