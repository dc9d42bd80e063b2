"""MXFP4: 4-bit floating-point weights (E2M1), of 32 neighbors one power of two (OCP MX, 1.0).

Format: `mxfp4-pack-quantized` of compressed-tensors, weights alone, as its preset MXFP4A16: vLLM 0.32 serves it with
activations in 16 bit from Ampere on. On Blackwell it takes the kernel with both in 4 bit, whatever a config says of
activations; other readers would lose by it and gain nothing.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from backend.errors import SpecError
from backend.models.facts import ModelFacts
from backend.models.rewriting import stream
from backend.quantize.compressed_tensors import Arguments
from backend.quantize.layouts.layout import Matrix
from backend.quantize.method import Method
from backend.quantize.scaled import ScaledOptions
from backend.weights.floats import Bytes
from backend.weights.rounding import Rows, encode, magnitudes
from backend.weights.writer import Slot

GROUP = 32
"""Neighbors that share a scale."""

BIAS, LEAST = 127, 2.0**-126
"""Of the exponents that are stored, and the smallest magnitude whose exponent is looked for."""


class Options(ScaledOptions):
    """4-bit floating point in groups of 32."""

    FORMAT: ClassVar[str] = "mxfp4-pack-quantized"

    method: Literal["mxfp4"] = "mxfp4"

    @property
    def weights(self) -> Arguments:
        """How weights are quantized."""
        groups = {"strategy": "group", "group_size": GROUP, "scale_dtype": "torch.uint8"}
        return {"num_bits": 4, "type": "float", **groups}

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that share a scale."""
        return 1, GROUP

    @property
    def choices(self) -> int:
        """Powers of two that are tried of each group."""
        return 2

    def holds(self, shape: Sequence[int]) -> bool:
        """Return whether the groups divide a layer's inputs."""
        return shape[1] % GROUP == 0

    def check(self, facts: ModelFacts) -> None:
        """Refuse what does not fit the model, before anything is downloaded.

        Raises:
            SpecError: As of other codes with scales; groups divide no layer's inputs.
        """
        super().check(facts)
        shapes = self.form(facts.tensors, facts.config).shapes
        if not any(map(self.holds, shapes.values())):
            name, (_, inputs) = next(iter(shapes.items()))
            raise SpecError(f"'{name}' has {inputs} inputs, which groups of {GROUP} do not divide: choose nf4 or fp8.")

    def slots(self, matrix: Matrix, dtype: str) -> list[Slot]:
        """Return the tensors that a matrix becomes."""
        outputs, inputs = matrix.shape
        packed = Slot(f"{matrix.name}_packed", "U8", (outputs, inputs // 2))
        return [packed, Slot(f"{matrix.name}_scale", "U8", (outputs, inputs // GROUP))]

    def encode(self, rows: Rows) -> tuple[Bytes, Bytes]:
        """Return codes and scales.

        OCP's power of two leaves the largest magnitude between 4 and 8 where 6 is the end of the grid. The next one
        loses less in a group whose largest is cut off, and each group takes the better.
        """
        _, exponents = np.frexp(np.maximum(magnitudes(rows), np.float32(LEAST)))
        powers = exponents[..., None] + np.array([-3, -2])
        codes, scales = encode(rows, "e2m1", np.ldexp(np.float32(1), powers))
        _, exponents = np.frexp(scales)
        return codes, (exponents - 1 + BIAS).astype(np.uint8)


METHOD = Method(
    Options,
    "MXFP4 · 4 bit",
    "4-bit floats, as gpt-oss ships: just over a quarter of the size. Fastest on Blackwell.",
    stream,
)
