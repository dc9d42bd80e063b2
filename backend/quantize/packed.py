"""Loading packed folders without their kernels: the weights that the integers stand for, in a plain model.

It takes the memory of the model in 16 bit; to measure and to look it does, to serve others there is vLLM.
"""

from pathlib import Path
from typing import Any

from backend.errors import SpecError
from backend.model_folder import read_config
from backend.models.loading import device, greedy
from backend.models.rewriting import loaded_dtype
from backend.models.torch_weights import read
from backend.progress import Report
from backend.quantize.calibrated.empty_model import empty_model, named, put
from backend.quantize.layouts import LAYOUTS
from backend.quantize.layouts.layout import Layout, Scheme
from backend.strict_json import quoted
from backend.weights.anatomy import TRANSPOSED
from backend.weights.checkpoint import Checkpoint


def is_packed(folder: Path) -> bool:
    """Return whether a model folder holds weights in one of the LAYOUTS."""
    settings = read_config(folder).get("quantization_config")
    return isinstance(settings, dict) and settings.get("quant_method") in LAYOUTS


def load_unpacked(folder: Path, report: Report) -> Any:
    """Load a folder of which is_packed() holds as a model of transformers, in the type that its config names.

    Args:
        folder: Admitted.
        report: Receives the tensors loaded.

    Raises:
        SpecError: It is in another layout than those written here, or transformers cannot make sense of it.
    """
    import torch

    config = read_config(folder)
    layout, scheme = _layout(config.pop("quantization_config"), folder.name)
    with Checkpoint.of(folder) as weights:
        tensors = {tensor.name: tensor for tensor in weights.tensors}
        dtype = getattr(torch, loaded_dtype(config, weights.tensors))
        model = empty_model(config, dtype, folder.name)
        names, missing = [name for name, _ in model.named_parameters()], set[str]()
        for done, name in enumerate(names):
            if tensor := named(tensors, name):
                values = read(weights, tensor)
            elif packed := named(tensors, name.removesuffix("weight") + layout.TENSORS[0]):
                base = packed.name.removesuffix(layout.TENSORS[0])
                there = {last: tensors[base + last] for last in layout.TENSORS if base + last in tensors}
                grid = layout.unpack({last: read(weights, t).numpy() for last, t in there.items()}, scheme)
                values = torch.from_numpy(grid.weight())
                values = values.T.contiguous() if config["model_type"] in TRANSPOSED else values
            else:
                missing.add(name)  # rightly so if it is the output head of a model whose embeddings are used there
                continue
            put(model, name, values.to(device(), dtype))
            report.progress("loading weights", done + 1, len(names), "tensors")
    model.tie_weights(missing, recompute_mapping=False)  # a head that is there and differs stays
    model.generation_config = greedy(folder)
    if missing:
        raise SpecError(f"{quoted(min(missing))} is missing in '{folder.name}': choose a complete model.")
    return model


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
