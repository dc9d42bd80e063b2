"""Weights of 8 or 4 bits as dense ones: decoded piece by piece where they are read, nothing is ever whole in memory."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from backend.weights.checkpoint import Weights
from backend.weights.encodings import ENCODINGS
from backend.weights.encodings.encoding import Encoded
from backend.weights.floats import SAFETENSORS, Bytes, named_dtype
from backend.weights.tensor import BITS, Tensor
from backend.weights.view import threads

_SETTINGS = "quantization_config"

_AT_ONCE = 1 << 17  # elements that are decoded at a time: what is in hand of them fits a core's cache


class Dense(NamedTuple):
    """What a checkpoint is to whoever works on it, from its headers alone."""

    tensors: tuple[Tensor, ...]
    config: dict[str, Any]  # without what says that it is quantized
    how: str | None = None  # it is encoded, in words
    encoded: tuple[Encoded, ...] = ()
    unused: tuple[Tensor, ...] = ()

    @property
    def memory(self) -> int:
        """Bytes that decoding takes beside what is decoded."""
        return max((one.kept + one.element * _in_hand(one) * threads() for one in self.encoded), default=0)


def _in_hand(one: Encoded) -> int:
    return min(max(_AT_ONCE, one.row), one.tensor.elements)


def encoded_as(config: Mapping[str, Any]) -> str | None:
    """Say how the weights of a model are encoded, as its config says; None where they are not, or not read here."""
    settings = _settings(config)
    encoding = ENCODINGS.get(str(settings.get("quant_method")))
    return encoding.words(settings) if encoding else None


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config says of the quantization, of its text model where it does not of the whole."""
    text = config.get("text_config")
    said = (part.get(_SETTINGS) for part in (config, text) if isinstance(part, Mapping))
    return next((settings for settings in said if isinstance(settings, dict)), {})


def _plain(config: Any) -> Any:
    """Return a config without what it says of the quantization."""
    return {key: value for key, value in config.items() if key != _SETTINGS} if isinstance(config, Mapping) else config


def dense(tensors: Sequence[Tensor], config: Mapping[str, Any]) -> Dense:
    """Say what a checkpoint is once it is decoded; itself where its weights are not encoded, or not read here.

    Args:
        tensors: Of all its files, in the order in which they are best read.
        config: What config.json says.

    Raises:
        SpecError: Tensors that belong together do not fit each other.
    """
    if (how := encoded_as(config)) is None:
        return Dense(tuple(tensors), dict(config))
    settings = _settings(config)
    encoding = ENCODINGS[settings["quant_method"]]
    named = named_dtype(config) or "bfloat16"
    found = encoding.find({tensor.name: tensor for tensor in tensors}, settings, SAFETENSORS[named])
    becomes = {one.parts[0].name: one.tensor for one in found.encoded}
    gone = {part.name for one in found.encoded for part in one.parts[1:]} | {tensor.name for tensor in found.unused}
    seen = tuple(becomes.get(tensor.name, tensor) for tensor in tensors if tensor.name not in gone)
    said = {key: _plain(value) if key == "text_config" else value for key, value in _plain(config).items()}
    said.pop("torch_dtype", None)
    return Dense(seen, said | {"dtype": named}, how, found.encoded, found.unused)


class Decoded:
    """Weights of a checkpoint that is encoded, as if they lay there in the model's type.

    Args:
        weights: As they lie there.
        found: From dense().
    """

    def __init__(self, weights: Weights, found: Dense) -> None:
        self.name, self.config = weights.name, found.config
        self.identity = repr((weights.identity, "decoded", found.config["dtype"]))
        self.tensors: Sequence[Tensor] = found.tensors
        self._weights = weights
        self._encoded = {one.tensor.name: one for one in found.encoded}
        for tensor in found.unused:
            weights.release(tensor)

    def read(self, tensor: Tensor, first: int, last: int) -> Bytes:
        """Read the elements from `first` to before `last` of a tensor, as bytes.

        Raises:
            SpecError: The file ends before them, or what is stored contradicts itself.
        """
        one = self._encoded.get(tensor.name)
        if one is None:
            return self._weights.read(tensor, first, last)
        width = BITS[tensor.dtype] // 8
        row = one.row
        step = max(_AT_ONCE // one.row, 1)
        top, bottom = first // row, -(-last // row)
        raw = np.empty((bottom - top) * row * width, np.uint8)
        for at in range(top, bottom, step):
            end = min(at + step, bottom)
            raw[(at - top) * row * width : (end - top) * row * width] = one.rows(self._weights.read, at, end)
        start = (first - top * row) * width
        return raw[start : start + (last - first) * width]

    def release(self, tensor: Tensor) -> None:
        """Say that a tensor will not be read again."""
        one = self._encoded.get(tensor.name)
        for part in one.parts if one else (tensor,):
            self._weights.release(part)
        if one:
            one.release()


def decoded(weights: Weights) -> Weights:
    """Return weights that are dense: themselves, or as they are once they are decoded.

    Raises:
        SpecError: Tensors that belong together do not fit each other.
    """
    found = dense(weights.tensors, weights.config)
    return Decoded(weights, found) if found.how else weights
