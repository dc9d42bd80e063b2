"""Engine rounding: a model in transformers that rounds what engines round while they compute: inputs, and the cache.

Which layers and how, config.json says in the words of compressed-tensors: `input_activations` of a group of layers, and
`kv_cache_scheme`. Scales that calibration has found lie beside the weights.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from backend.models.config import quantization
from backend.models.torch_weights import read
from backend.quantize import compressed_tensors
from backend.quantize.calibrated import kv_cache
from backend.quantize.calibrated.filling import Filler
from backend.quantize.compressed_tensors import Arguments
from backend.quantize.input_rounding import SCALES, Rounds, rounding
from backend.weights.anatomy import is_expert
from backend.weights.checkpoint import Checkpoint, Weights
from backend.weights.decoded import dense
from backend.weights.encodings import fp8

ROWS = 256
"""Tokens whose inputs are rounded at a time: what is in hand of them fits a core's cache."""

_INPUTS, _OF_EXPERTS, _CACHE = "inputs of layers", "inputs of experts", "the cache"


def round_as_engines(model: Any, folder: Path) -> str:
    """Have a model round what engines round while they compute.

    Args:
        model: As load() gives it.
        folder: That it was loaded from.

    Returns:
        What is rounded, and what is not though engines do, as a clause; nothing where they round nothing.
    """
    with Checkpoint.of(folder) as weights:
        if dense(weights.tensors, weights.config).how is None:  # its own package reads it, and rounds by itself
            return ""
        engine = _Engine(model, weights)
        found: dict[str, list[bool]] = {}
        for part, done in (*engine.round_inputs(), *engine.round_caches()):
            found.setdefault(part, []).append(done)
    rounded = [part for part, done in found.items() if any(done)]
    exact = [f"other {part}" if any(done) else part for part, done in found.items() if not all(done)]
    clauses = [f"{' and '.join(rounded)} rounded as engines do"] if rounded else []
    clauses += [f"{' and '.join(exact)} in 16 bit, where engines round them and lose more"] if exact else []
    return ", ".join(clauses)


class _Engine:
    """What an engine knows of a model.

    Args:
        model: Of transformers, whose layers are told to round.
        weights: Of the folder that it was loaded from.
    """

    def __init__(self, model: Any, weights: Weights) -> None:
        self._modules = dict(model.named_modules())
        self._weights, self._settings = weights, quantization(weights.config)
        self._dense = dense(weights.tensors, weights.config)
        self._tensors = {tensor.name: tensor for tensor in weights.tensors}
        self._places = Filler(model, [tensor.name for tensor in self._dense.tensors]).places

    def round_inputs(self) -> Iterator[tuple[str, bool]]:
        """Have layers round their inputs, and yield of each what it is, and whether it does."""
        layers: dict[str, Rounds] = {}
        for one in self._dense.encoded:
            name = one.tensor.name.removesuffix(".weight")
            said = _said(self._settings, name)
            if said is None:
                continue
            path = self._module_of(one.tensor.name)
            rounds = self._rounding(said, name, path)
            if rounds:
                layers[path] = rounds
            yield _OF_EXPERTS if is_expert(one.tensor) else _INPUTS, rounds is not None
        for path, rounds in layers.items():
            self._modules[path].register_forward_pre_hook(_before(rounds))

    def round_caches(self) -> Iterator[tuple[str, bool]]:
        """Have attentions round what they put into the cache, and yield whether they do, where engines do."""
        scheme = self._settings.get("kv_cache_scheme")
        if not isinstance(scheme, Mapping):
            return
        caches: dict[str, dict[str, Rounds]] = {}
        for tensor in self._dense.tensors:
            for name in kv_cache.beside(tensor.name):
                if rounds := rounding(scheme, self._number([name])):
                    attention = self._module_of(tensor.name).rpartition(".")[0]
                    caches.setdefault(attention, {})[name.rpartition(".")[2]] = rounds
        whole = {attention: found for attention, found in caches.items() if len(found) == len(kv_cache.SCALES)}
        for attention, found in whole.items():
            kv_cache.Rounded(self._modules[attention], found)
        yield _CACHE, bool(whole)

    def _module_of(self, name: str) -> str:
        return self._places[name].parameter.rpartition(".")[0]

    def _rounding(self, said: Arguments, name: str, path: str) -> Rounds | None:
        """Return what rounds the inputs of a layer; None where it is not known, or not possible.

        Args:
            said: How.
            name: Of the layer, as scales beside its weight have it.
            path: Of its module.
        """
        import torch

        layer, size = self._modules.get(path), said.get("group_size") or 1
        if not isinstance(layer, torch.nn.Linear) or type(size) is not int or layer.in_features % size:
            return None
        scales = SCALES.get(str(said.get("strategy") or "tensor"), ())
        return rounding(said, self._number(f"{name}.{scale}" for scale in scales))

    def _number(self, names: Iterable[str]) -> float | None:
        """Return the number that is stored under the first of some names that is there."""
        tensor = next((self._tensors[name] for name in names if name in self._tensors), None)
        return float(read(self._weights, tensor)) if tensor and tensor.elements == 1 else None


def _said(settings: Mapping[str, Any], layer: str) -> Arguments | None:
    """Return how engines round the inputs of a layer whose weights are encoded, in the words of compressed-tensors.

    Of other formats, as vLLM's fp8.py does it.
    """
    method, floats = settings.get("quant_method"), {"type": "float", "num_bits": 8}
    if method == "mxfp8":
        return {**floats, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8", "dynamic": True}
    if method not in ("fp8", "fbgemm_fp8"):
        return compressed_tensors.inputs_of(settings, layer)
    if settings.get("activation_scheme") == "static":
        return {**floats, "strategy": "tensor"}
    block = fp8.pair(settings.get("weight_block_size"))
    groups = {"strategy": "group", "group_size": block[1]} if block else {"strategy": "token"}
    return {**floats, **groups, "dynamic": True}


def _before(rounds: Rounds) -> Any:
    """Return what a layer is told to do before its forward."""
    import torch

    def hook(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *others = args
        parts = x.reshape(-1, x.shape[-1]).split(ROWS)
        return torch.cat([rounds(part.float()).to(x.dtype) for part in parts]).reshape(x.shape), *others

    return hook
