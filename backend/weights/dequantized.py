"""Weights as a QLoRA training sees them: quantized to 4 bit and unpacked again, as bitsandbytes does, piece by piece.

Layout and arithmetic: bitsandbytes 0.50 `quantize_4bit` and `dequantize_4bit` (QLoRA, arXiv 2305.14314). With double
quantization a scale depends on all scales of its tensor, so these are found in a first pass and kept until release().
"""

from collections.abc import Sequence
from threading import Lock

import numpy as np

from backend.errors import SpecError
from backend.machine.hardware import torch_threads
from backend.weights.anatomy import TRANSPOSED, is_linear
from backend.weights.checkpoint import Weights
from backend.weights.codes import BLOCK, CODES, NESTED_BLOCK
from backend.weights.floats import Bytes, Floats, cast, from_float32, is_finite, transposed
from backend.weights.kernels import dynamic_map, quantize_4bit, quantize_absmax
from backend.weights.tensor import BITS, Tensor
from backend.weights.view import PIECE


class Dequantized:
    """Weights whose linear layers went through 4 bits; all others stay as they are.

    Args:
        weights: In 16 or 32 bit.
        quant_type: "nf4" or "fp4".
        double: Whether the scales are quantized too.
        dtype: What transformers loads the weights as before bitsandbytes quantizes them; they come back in it.
    """

    def __init__(self, weights: Weights, quant_type: str, double: bool, dtype: str) -> None:
        self.name, self.config = weights.name, weights.config
        self.identity = repr((weights.identity, quant_type, double, dtype))
        self._weights = weights
        self._quant_type = quant_type
        self._double = double
        self._dtype = dtype
        self._stored = {tensor.name: tensor for tensor in weights.tensors}
        self._turned = weights.config.get("model_type") in TRANSPOSED
        self._scales: dict[str, Floats] = {}
        self._raw: dict[str, Bytes] = {}  # of a turned tensor, as 4 bits see it: [out, in]
        self._done: dict[str, Bytes] = {}  # and what they leave of it, as it lies
        self._lock, self._turning = Lock(), Lock()
        self.tensors: Sequence[Tensor] = tuple(
            tensor.model_copy(update={"dtype": dtype}) if is_linear(tensor) else tensor for tensor in weights.tensors
        )
        code = CODES[quant_type]
        self._pairs = np.stack([np.repeat(code, 16), np.tile(code, 16)], 1)  # of each byte, its upper half first

    def read(self, tensor: Tensor, first: int, last: int) -> Bytes:
        """Read elements as bytes; of a linear layer, what 4 bits leave of them.

        Raises:
            SpecError: A number is not finite.
        """
        stored = self._stored[tensor.name]
        if not is_linear(stored):
            return self._weights.read(stored, first, last)
        if self._turned:
            width = BITS[self._dtype] // 8
            return self._turned_back(stored)[first * width : last * width]
        return self._unpacked(stored, first, last)

    def _unpacked(self, stored: Tensor, first: int, last: int) -> Bytes:
        """Return what 4 bits leave of elements, in the order in which they are quantized."""
        start = first // BLOCK * BLOCK
        end = min(-(-last // BLOCK) * BLOCK, stored.elements)
        packed, absmax = self._quantize(stored, start, end)
        if self._double:
            absmax = self._scales_of(stored)[start // BLOCK : start // BLOCK + len(absmax)]
        values = self._pairs[packed].reshape(-1)[: end - start]
        full = len(values) // BLOCK * BLOCK
        values[:full].reshape(-1, BLOCK)[:] *= absmax[: full // BLOCK, None]
        values[full:] *= absmax[-1]
        return from_float32(values[first - start : last - start], self._dtype)

    def release(self, tensor: Tensor) -> None:
        """Say that a tensor will not be read again."""
        for kept in (self._scales, self._raw, self._done):
            kept.pop(tensor.name, None)
        self._weights.release(self._stored[tensor.name])

    def _quantize(self, tensor: Tensor, first: int, last: int) -> tuple[Bytes, Floats]:
        raw = cast(self._read(tensor, first, last), tensor.dtype, self._dtype)
        if not is_finite(raw, self._dtype):
            raise SpecError(f"'{tensor.name}' holds numbers that are not finite: the model is damaged, choose another.")
        return quantize_4bit(raw, self._dtype, self._quant_type)

    def _read(self, tensor: Tensor, first: int, last: int) -> Bytes:
        """Read elements in the order in which they are quantized."""
        if not self._turned:
            return self._weights.read(tensor, first, last)
        width = BITS[tensor.dtype] // 8
        return self._raw[tensor.name][first * width : last * width]

    def _turned_back(self, tensor: Tensor) -> Bytes:
        """Return what 4 bits leave of a whole tensor that is quantized transposed; models with such are small."""
        with self._turning:
            if tensor.name not in self._done:
                whole = self._weights.read(tensor, 0, tensor.elements)
                self._raw[tensor.name] = transposed(whole, tensor.shape)
                self._done[tensor.name] = transposed(self._unpacked(tensor, 0, tensor.elements), tensor.shape[::-1])
            return self._done[tensor.name]

    def _scales_of(self, tensor: Tensor) -> Floats:
        """Return the scales of a whole tensor as double quantization leaves them."""
        with self._lock:
            if tensor.name not in self._scales:
                starts = range(0, tensor.elements, PIECE)
                parts = [self._quantize(tensor, at, min(at + PIECE, tensor.elements))[1] for at in starts]
                places, nested, offset = quantize_absmax(np.concatenate(parts), torch_threads())
                tops = np.repeat(nested, NESTED_BLOCK)[: len(places)]
                self._scales[tensor.name] = dynamic_map()[places] * tops + offset
            return self._scales[tensor.name]
