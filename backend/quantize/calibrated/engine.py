"""The engine: text goes through block after block, weights are rounded, and the next block hears the result.

Of the model one block is in memory at a time. What is finished is in the files already; a run that was killed computes
the inputs of its next block again from them, which costs a forward and keeps no second copy of anything.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from backend.errors import HardwareError, SpecError
from backend.machine.hardware import give_freed_memory_back
from backend.models.families import traits
from backend.progress import Report
from backend.quantize.calibrated.architectures import Group, groups_of
from backend.quantize.calibrated.block_files import Numbers, Rounded, Shards
from backend.quantize.calibrated.block_layers import Layers
from backend.quantize.calibrated.calls import Calls, Shared
from backend.quantize.calibrated.empty_model import Skeleton, as_mapping
from backend.quantize.calibrated.input_statistics import Statistics
from backend.quantize.calibrated.kv_cache import Largest
from backend.quantize.calibrated.options import CalibratedOptions
from backend.quantize.calibrated.rounding import round_groups
from backend.quantize.calibrated.windows import Windows
from backend.weights.checkpoint import Weights
from backend.weights.output import Output

BATCH = 2048
"""Tokens that go through a block at a time: with twice as many, peak memory is 70 MB more and no second is won."""


def quantize_blocks(
    weights: Weights, output: Output, options: CalibratedOptions, windows: Windows, report: Report
) -> str | None:
    """Write a model with the linear layers of its blocks quantized; goes on after the blocks that are there already.

    Args:
        weights: The model's.
        output: Where it goes.
        options: What is done.
        windows: What calibration reads.
        report: Receives the blocks.

    Returns:
        What training its scales has gained, in words; None: nothing, or it was not done.

    Raises:
        SpecError: The model cannot be taken apart, or holds numbers that are not finite.
    """
    give_freed_memory_back()
    read = hashlib.sha256(windows.ids.tobytes())
    read.update(windows.held.tobytes())
    shards = Shards(weights, output, options, read.hexdigest())
    gained = shards.refined()
    if gained is None:
        _calibrate(weights, shards, options, windows, report)
        gained = _refine(weights, shards, options, windows, report) if options.refines else None
    shards.close()
    return gained


def _calibrate(weights: Weights, shards: Shards, options: CalibratedOptions, windows: Windows, report: Report) -> None:
    import torch

    skeleton = Skeleton(weights)
    run = _Run(skeleton, shards, options, report)
    with torch.inference_mode():
        report.progress("reading calibration text", 0, 1, "blocks")
        hidden, calls = skeleton.embed(windows.ids)
        shards.copy(skeleton.outside, report)
        total = len(skeleton.blocks)
        for index, call in enumerate(calls):
            report.progress("quantizing", index, total, "blocks")
            run.block(index, hidden, call, last=index == total - 1)
        report.progress("quantizing", total, total, "blocks")


def _refine(
    weights: Weights, shards: Shards, options: CalibratedOptions, windows: Windows, report: Report
) -> str | None:
    """Train the scales of what was calibrated; a model that cannot be trained stays as it is."""
    from backend.quantize.calibrated.refinement import refine

    try:
        return refine(weights, shards, options, windows, report)
    except (HardwareError, SpecError) as e:
        report.log(str(e))
        return None


class _Run:
    """What all blocks have in common."""

    def __init__(self, skeleton: Skeleton, shards: Shards, options: CalibratedOptions, report: Report) -> None:
        self._skeleton = skeleton
        self._shards = shards
        self._options = options
        self._report = report
        known = groups_of(as_mapping(skeleton.config))
        if known is None:
            report.log(
                f"'{skeleton.config.model_type}' is not known here: its layers are rounded without scale search."
            )
        self._known = known or ()
        alone = traits(skeleton.config.model_type).alone or getattr(skeleton.config, "alibi", False)
        self._tokens = 1 if alone else BATCH
        self._shared: Shared = {}

    def block(self, index: int, hidden: Any, calls: Calls, last: bool) -> None:
        """Quantize a block, write it, and put its outputs in the place of its inputs.

        Args:
            index: Of the block.
            hidden: Its inputs, [windows, length, hidden_size]; its outputs afterwards.
            calls: What else it is called with.
            last: Whether nobody hears its outputs.
        """
        layers = Layers(self._skeleton.fill(index), self._shards.packing)
        finished = self._shards.restore(layers.tensors)
        rounded = finished or self._quantize(index, layers, hidden, calls)
        layers.put(rounded.weights())
        if finished is None:
            scales = self._cache_scales(layers, hidden, calls)
            self._shards.write(layers.tensors, rounded._replace(scales=scales))
        if not last:
            for first, batch in self._batches(hidden):
                hidden[first : first + len(batch)] = self._forward(layers, first, batch, calls).cpu()
        self._skeleton.empty(index)

    def _quantize(self, index: int, layers: Layers, hidden: Any, calls: Calls) -> Rounded:
        groups = self._groups(layers, hidden, calls)
        statistics = self._listen(layers, groups, hidden, calls)
        state = layers.state()
        grids = round_groups(state, groups, statistics, self._options, self._report, self._skeleton.dtype)
        written = {layers.names[f"{name}.weight"]: grid for name, grid in grids.items()}
        stays = {layers.names[name]: v.cpu().numpy() for name, v in state.items() if layers.names[name] not in written}
        for path, experts in layers.experts.items():
            for expert in experts:
                state, heard = experts.state(expert), experts.statistics(expert)
                grids = round_groups(state, experts.groups, heard, self._options, self._report, self._skeleton.dtype)
                written |= {layers.names[f"{path}.{expert}.{name}"]: grid for name, grid in grids.items()}
            experts.forget()
            if experts.lent:
                count = len(experts.matrices)
                self._report.log(
                    f"Block {index}: {experts.lent} of {count} experts saw too few tokens and heard others of their"
                    " layer."
                )
        return Rounded(stays, written, {})

    def _cache_scales(self, layers: Layers, hidden: Any, calls: Calls) -> dict[str, Numbers]:
        """Return the scales of a quantized block's cache, by their names; none where none are asked for."""
        caches = {names: Largest(layers.module.get_submodule(path)) for path, names in layers.cached().items()}
        for first, batch in self._batches(hidden) if caches else ():
            self._forward(layers, first, batch, calls)
        return {name: scale for names, cache in caches.items() for name, scale in cache.scales(names)}

    def _groups(self, layers: Layers, hidden: Any, calls: Calls) -> list[Group]:
        """Return the groups of a block: those that are known, and of other linear layers those with the same input."""
        known = [group for group in map(layers.there, self._known) if group]
        rest = [name for name in layers.linears if not any(name in group.linears for group in known)]
        if not rest:
            return known
        inputs: dict[str, Any] = {}
        hooks = [layers.on_input(name, partial(inputs.setdefault, name)) for name in rest]
        first, batch = next(self._batches(hidden))
        self._forward(layers, first, batch, calls)
        for hook in hooks:
            hook.remove()
        alike: dict[object, list[str]] = {}
        for name in rest:
            x = inputs.get(name)  # nothing where a layer is not called
            alike.setdefault(name if x is None else (x.data_ptr(), x.shape), []).append(name)
        return [*known, *(Group(tuple(names)) for names in alike.values())]

    def _listen(self, layers: Layers, groups: Sequence[Group], hidden: Any, calls: Calls) -> list[Statistics]:
        statistics = [Statistics() for _ in groups]
        pairs = zip(groups, statistics, strict=True)
        hooks = [layers.on_input(group.linears[0], found.add) for group, found in pairs]
        hooks += [experts.listen() for experts in layers.experts.values()]
        for first, batch in self._batches(hidden):
            self._forward(layers, first, batch, calls)
        for hook in hooks:
            hook.remove()
        return statistics

    def _forward(self, layers: Layers, first: int, batch: Any, calls: Calls) -> Any:
        args, kwargs = calls.at(first, len(batch), self._shared)
        given = calls.as_given(batch.to(self._skeleton.device, copy=True))  # some change it
        found = layers.module(given, *args, **kwargs)
        return calls.hand_on(found, first, self._shared)

    def _batches(self, hidden: Any) -> Iterator[tuple[int, Any]]:
        """Return the windows some at a time, each time with the number of the first."""
        step = max(self._tokens // hidden.shape[1], 1)
        return ((first, hidden[first : first + step]) for first in range(0, len(hidden), step))
