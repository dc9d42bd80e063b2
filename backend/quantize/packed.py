"""Loading quantized folders without their kernels: the weights that the codes stand for, in a plain model.

It takes the memory of the model in 16 bit; to measure and to look it does, to serve others there is vLLM.
"""

from pathlib import Path
from typing import Any

from backend.errors import SpecError
from backend.model_folder import read_config
from backend.models.loading import device, greedy, leave_pictures_out, load_causal_lm
from backend.models.rewriting import loaded_dtype
from backend.models.torch_weights import read
from backend.progress import Report
from backend.quantize.calibrated.empty_model import empty_model, tie
from backend.quantize.calibrated.filling import Filler
from backend.quantize.layouts import LAYOUTS
from backend.quantize.layouts.layout import Layout, Scheme
from backend.quantize.layouts.packing import WORD
from backend.quantize.matrices import Matrices, is_single
from backend.weights.checkpoint import Checkpoint, Weights
from backend.weights.decoded import decoded, encoded_as
from backend.weights.encodings import ENCODINGS
from backend.weights.floats import SAFETENSORS
from backend.weights.tensor import BITS

_BEHIND = ".act.scales"
"""What AutoAWQ put behind the activations of some types, by which they are divided."""


def is_unpacked(folder: Path) -> bool:
    """Return whether load() makes 16-bit weights of what a model folder holds, as which nobody serves it."""
    return _is_packed(folder) or encoded_as(read_config(folder)) is not None


def load(folder: Path, report: Report) -> Any:
    """Load a model folder to compute with its very weights, however they are quantized; see load_causal_lm()."""
    apart = _is_packed(folder) or _has_codes_of_experts(folder)
    return load_unpacked(folder, report) if apart else load_causal_lm(folder, report)


def unpacked_bytes(folder: Path) -> int:
    """Return the bytes of the weights of a quantized folder once load_unpacked() has loaded them, from its headers."""
    with Checkpoint.of(folder) as weights:
        if not _is_packed(folder):
            return sum(tensor.bytes for tensor in decoded(weights).tensors)
        layout, scheme = _layout(read_config(folder)["quantization_config"], folder.name)
        width = BITS[SAFETENSORS[loaded_dtype(weights.config, weights.tensors)]] // 8
        sizes = dict.fromkeys(layout.TENSORS, 0.0) | {layout.TENSORS[0]: width * WORD / scheme.bits}
        ends = ((tensor, tensor.name.rpartition(".")[2]) for tensor in weights.tensors)
        return sum(int(tensor.elements * sizes[end]) if end in sizes else tensor.bytes for tensor, end in ends)


def _is_packed(folder: Path) -> bool:
    """Return whether a model folder holds weights in one of the LAYOUTS that is not decoded wherever it is read."""
    settings = read_config(folder).get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    return method in LAYOUTS and method not in ENCODINGS


def _has_codes_of_experts(folder: Path) -> bool:
    """Return whether quantized experts lie one by one, which not every class of transformers is read from."""
    if not encoded_as(read_config(folder)):
        return False
    with Checkpoint.of(folder) as weights:
        return any(is_single(tensor.name) for tensor in weights.tensors)


def load_unpacked(folder: Path, report: Report) -> Any:
    """Load a quantized folder as a model of transformers, in the type that its config names.

    Args:
        folder: Admitted.
        report: Receives the tensors loaded.

    Raises:
        SpecError: It is in another layout than those written here, or transformers cannot make sense of it.
    """
    with Checkpoint.of(folder) as weights:
        if not _is_packed(folder):
            return _fill(_Apart(decoded(weights)), folder, report)
        config = read_config(folder)
        layout, scheme = _layout(config.pop("quantization_config"), folder.name)
        return _fill(_Unpacked(weights, config, layout, scheme), folder, report)


def _fill(tensors: "_Apart", folder: Path, report: Report) -> Any:
    """Build a model and fill it, a few tensors at a time."""
    import torch

    dtype = getattr(torch, loaded_dtype(tensors.config, tensors.weights.tensors))
    model = empty_model(tensors.config, dtype, folder.name)
    filler = Filler(model, tensors.names)
    batches = tensors.batches(filler)
    for done, names in enumerate(batches):
        filler.fill(tensors.load(names, filler), device(), dtype)
        report.progress("loading weights", done + 1, len(batches), "tensors")
    tie(model, folder.name)
    model.generation_config = greedy(folder)
    leave_pictures_out()
    return model


class _Apart:
    """The tensors of a folder whose experts lie one by one, whatever models of the type are read from.

    Args:
        weights: The folder's, dense.

    Attributes:
        weights: The same.
        config: What its config.json says of the model.
        names: Of all tensors.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights, self.config = weights, weights.config
        self._matrices = Matrices(weights.config)
        self._tensors = {tensor.name: tensor for tensor in weights.tensors}
        self.names = list(self._tensors)

    def read(self, name: str) -> Any:
        """Return a tensor as one of torch."""
        return read(self.weights, self._tensors[name])

    def batches(self, filler: Filler) -> list[list[str]]:
        """Return all names, those together that become one parameter of a model."""
        found: dict[str, list[str]] = {}
        for name in self.names:
            stack = filler.stack(name)
            found.setdefault(stack.name if stack else filler.places[name].parameter, []).append(name)
        return list(found.values())

    def load(self, names: list[str], filler: Filler) -> dict[str, Any]:
        """Return some tensors; experts that a model of the type has in one tensor alone are put into that."""
        import torch

        stack = filler.stack(names[0])
        if stack is None:
            return {name: self.read(name) for name in names}
        values = torch.empty(stack.shape, dtype=torch.float32)
        for matrix, part in self._matrices.of(stack).items():
            assert part
            self._matrices.view(values, part, matrix.shape[0]).copy_(self.read(matrix.name))
        return {stack.name: values}


class _Unpacked(_Apart):
    """The tensors of a packed folder as those of a plain one.

    Args:
        weights: The folder's.
        config: What its config.json says of the model.
        layout: Of its integers.
        scheme: Of its grids.
    """

    def __init__(self, weights: Weights, config: dict[str, Any], layout: Layout, scheme: Scheme) -> None:
        super().__init__(weights)
        self.config = config
        self._layout = layout
        self._scheme = scheme
        if any(name.endswith(_BEHIND) for name in self._tensors):
            text = "scales its activations, which is not read here: choose the model that it was made from"
            raise SpecError(f"'{weights.name}' {text}.")
        first = f".{layout.TENSORS[0]}"
        packed = {name.removesuffix(first) for name in self._tensors if name.endswith(first)}
        plain = [name for name in self._tensors if name.rpartition(".")[0] not in packed or name.endswith(".bias")]
        self.names = [*plain, *(f"{base}.weight" for base in sorted(packed))]

    def read(self, name: str) -> Any:
        """Return a tensor as one of torch."""
        import torch

        if name in self._tensors:
            return read(self.weights, self._tensors[name])
        base = name.removesuffix("weight")
        there = {last: self._tensors[base + last] for last in self._layout.TENSORS if base + last in self._tensors}
        held = {last: read(self.weights, tensor).numpy() for last, tensor in there.items()}
        values = torch.from_numpy(self._layout.unpack(held, self._scheme).weight())
        return values.T.contiguous() if self._matrices.transposed else values


def _layout(settings: dict[str, Any], name: str) -> tuple[Layout, Scheme]:
    """Return what unpacks a folder."""
    layout = LAYOUTS[settings["quant_method"]]
    scheme = layout.scheme(settings)
    if scheme is None:
        version = settings.get("checkpoint_format") or settings.get("version") or settings["quant_method"]
        raise SpecError(
            f"'{name}' is in the layout '{version}' with {settings.get('bits')} bits, which is not read here: choose"
            " one in gptq or gemm."
        )
    return layout, scheme
