"""Repacking: a calibrated model is written once more in another layout, from the grids that lie in the first."""

from pathlib import Path

from backend.progress import Report
from backend.quantize.calibrated.block_files import Shards
from backend.quantize.calibrated.options import CalibratedOptions
from backend.weights.anatomy import block_of
from backend.weights.checkpoint import Folder, Weights
from backend.weights.output import Output
from backend.weights.tensor import Tensor


def repack(
    weights: Weights, output: Output, options: CalibratedOptions, found: tuple[Path, CalibratedOptions], report: Report
) -> None:
    """Write a calibrated model in another layout; goes on after the blocks that are there already.

    Args:
        weights: Of the model that it is made from.
        output: Where it goes.
        options: What is wanted.
        found: The folder with the grids, and its options, which these share(); see CalibratedOptions.
        report: Receives the blocks.
    """
    folder, before = found
    grids = Shards(weights, Output(folder), before, "")
    shards = Shards(weights, output, options, Folder(folder).identity)
    blocks: dict[int, list[Tensor]] = {}
    for tensor in weights.tensors:
        blocks.setdefault(block_of(tensor.name), []).append(tensor)
    shards.copy(blocks.pop(-1, ()), report)
    for done, tensors in enumerate(map(blocks.__getitem__, sorted(blocks))):
        report.progress("repacking", done, len(blocks), "blocks")
        if shards.restore(tensors) is None:
            shards.write(tensors, grids.read(tensors))
        for tensor in tensors:
            weights.release(tensor)
    report.progress("repacking", len(blocks), len(blocks), "blocks")
    shards.close()
