"""Refinement: group scales are trained so that the whole model says what it said in 16 bit; integers stay.

What the original says at the calibration's windows is kept, and the packed model is trained towards it, as DWQ of
mlx-lm does and the second phase of EfficientQAT (arXiv 2407.11062). Windows that neither calibration nor training sees
decide whether the result is any better.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.checkpoint import checkpoint

from backend.machine.hardware import gpu_bytes, memory_bytes
from backend.models.loading import in_our_words
from backend.progress import Report
from backend.quantize.calibrated.block_files import Rounded, Shards
from backend.quantize.calibrated.block_layers import Layers
from backend.quantize.calibrated.costs import READ, refinement_obstacle
from backend.quantize.calibrated.distillation import Said, divergence, listen
from backend.quantize.calibrated.empty_model import Skeleton
from backend.quantize.calibrated.options import CalibratedOptions
from backend.quantize.calibrated.packed_weight import PackedWeight
from backend.quantize.calibrated.windows import Windows, spread
from backend.weights.checkpoint import Weights
from backend.weights.tensor import Tensor

LEARNING_RATE = 1e-3
"""By what share a scale changes in a step, at most. bfloat16 holds no steps much below 4e-3, so that most of what is
stored stays as it is; with five times as much, the model is worse than before."""

WARM = 0.2
"""Share of the steps in which that is reached: Adam knows little of the gradients at first."""

BETAS = (0.9, 0.97)
"""Of Adam's means: there are few steps."""

SMALLEST = 1e-12
"""Added to the size of gradients, which are small."""


def pack(skeleton: Skeleton, shards: Shards, options: CalibratedOptions) -> dict[str, PackedWeight]:
    """Have a model compute with what was written of it.

    Args:
        skeleton: Of the whole original.
        shards: Hold the result.
        options: What was done.

    Returns:
        What stands for the weights of linear layers, by their names.
    """
    found = {}
    for index, module in enumerate(skeleton.blocks):
        layers = Layers(skeleton.block(index), shards.packing)
        rounded = shards.read(layers.tensors)
        layers.put(rounded.state.items())
        for path in layers.linears:
            name, linear = layers.names[f"{path}.weight"], module.get_submodule(path)
            turned = shards.packing.matrices.transposed
            found[name] = PackedWeight(rounded.grids[name], options.numbers.storable, linear, turned)
        # what is between is computed again on the way back
        module.forward = partial(checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False)
    return found


def train(model: Any, changes: Sequence[Any], said: Sequence[Said], report: Report) -> None:
    """Train what changes of a model so that it says what the original says, a window a step."""
    optimizer = torch.optim.Adam(changes, LEARNING_RATE, BETAS, SMALLEST)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, steps=len(said)))
    for done, at in enumerate(np.random.default_rng(0).permutation(len(said))):
        report.progress("refining", done, len(said), "windows")
        loss = divergence(model, [said[at]]) * len(said[at].ids)  # float16 has no gradients of a mean
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    report.progress("refining", len(said), len(said), "windows")


def _rate(step: int, steps: int) -> float:
    """Return the share of the learning rate in a step: up in a line, down along a cosine."""
    return min(1.0, (step + 1) / (WARM * steps)) * (1 + math.cos(math.pi * step / steps)) / 2


def refine(
    weights: Weights, shards: Shards, options: CalibratedOptions, windows: Windows, report: Report
) -> str | None:
    """Train the scales of a result that is written, and write them where they are better.

    Args:
        weights: Of the model that it is made from.
        shards: Hold the result.
        options: What was done.
        windows: What calibration has read, and what was held back.
        report: Receives windows and steps.

    Returns:
        What is gained, in words; None: nothing, and the result is as it was.

    Raises:
        SpecError: The model cannot be trained, as some cannot.
        HardwareError: There is not enough memory.
    """
    obstacle = refinement_obstacle(weights, options, gpu_bytes() or memory_bytes())
    if obstacle is None and not len(windows.held):
        obstacle = "The scales are not refined: there is too little calibration text to hold some of it back."
    if obstacle:
        report.log(obstacle)
        return None
    with in_our_words(f"Refining '{weights.name}'", "it stays as it was calibrated"):
        skeleton = Skeleton(weights)
        model = skeleton.whole().requires_grad_(False)
        read, held = (_said(model, ids, report) for ids in (spread(windows.ids, READ), windows.held))
        packed = pack(skeleton, shards, options)
        changes = [weight.change.requires_grad_(True) for weight in packed.values()]
        before = _mean(model, held)
        train(model, changes, read, report)
        after = _mean(model, held)
    words = f"KL divergence {before:.4f} → {after:.4f} on {len(held)} windows that were held back"
    if not after < before:
        report.log(f"The scales stay as they were calibrated, training makes them no better: {words}.")
        return None
    report.log(f"The scales are refined: {words}.")
    shards.rewrite(trained(skeleton, shards, packed), words)
    return words


def _said(model: Any, ids: NDArray[np.int64], report: Report) -> list[Said]:
    """Have the original read windows."""
    found = []
    for done, window in enumerate(ids):
        report.progress("reading as the original", done, len(ids), "windows")
        found.append(listen(model, torch.from_numpy(window)))
    return found


def trained(
    skeleton: Skeleton, shards: Shards, packed: Mapping[str, PackedWeight]
) -> Iterator[tuple[list[Tensor], Rounded]]:
    """Yield each block as it is written, with the scales that were trained."""
    for index in range(len(skeleton.blocks)):
        tensors = list(skeleton.tensors_of(index).values())
        found = shards.read(tensors)
        new = {name: grid._replace(scales=packed[name].scales().cpu().numpy()) for name, grid in found.grids.items()}
        yield tensors, found._replace(grids=new)


def _mean(model: Any, said: Sequence[Said]) -> float:
    with torch.no_grad():
        return float(sum(divergence(model, [window]) for window in said)) / len(said)
