"""The engine: text goes through block after block, weights are rounded, and the next block hears the result.

Of the model one block is in memory at a time. What is finished is in the files already; a run that was killed computes
the inputs of its next block again from them, which costs a forward and keeps no second copy of anything.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from backend.errors import SpecError
from backend.machine.hardware import give_freed_memory_back
from backend.models.rewriting import config_json
from backend.progress import Report
from backend.quantize.calibrated.architectures import Group, architecture_of
from backend.quantize.calibrated.block_files import Numbers, Shards
from backend.quantize.calibrated.channel_scales import State, fold_scale, search
from backend.quantize.calibrated.empty_model import Call, Skeleton, as_mapping
from backend.quantize.calibrated.error_feedback import solve
from backend.quantize.calibrated.input_statistics import Statistics
from backend.quantize.calibrated.options import CalibratedOptions
from backend.quantize.calibrated.refit_scales import refine
from backend.quantize.calibrated.windows import Windows
from backend.quantize.layouts.layout import Grid
from backend.weights.anatomy import TRANSPOSED
from backend.weights.checkpoint import Weights
from backend.weights.output import Output

BATCH = 2048
"""Tokens that go through a block at a time: with twice as many, peak memory is 70 MB more and no second is won."""

ONE_BY_ONE = ("bloom", "xglm")
"""Model types whose blocks are called with masks or biases of so many windows as go through: noted down of one."""


def quantize_blocks(
    weights: Weights, output: Output, options: CalibratedOptions, windows: Windows, report: Report
) -> None:
    """Write a model with the linear layers of its blocks quantized; goes on after the blocks that are there already.

    Args:
        weights: The model's.
        output: Where it goes.
        options: What is done.
        windows: What calibration reads.
        report: Receives the blocks.

    Raises:
        SpecError: The model cannot be taken apart, or holds numbers that are not finite.
    """
    import torch

    give_freed_memory_back()
    skeleton = Skeleton(weights)
    shards = Shards(weights, output, options, hashlib.sha256(windows.ids.tobytes()).hexdigest())
    run = _Run(skeleton, shards, options, report)
    with torch.inference_mode():
        report.progress("reading calibration text", 0, 1, "blocks")
        hidden, calls = skeleton.embed(windows.ids)
        shards.copy(report)
        total = len(skeleton.blocks)
        for index, call in enumerate(calls):
            report.progress("quantizing", index, total, "blocks")
            run.block(index, hidden, call, last=index == total - 1)
        report.progress("quantizing", total, total, "blocks")
    shards.close()
    changes = options.config(weights.tensors)
    (output.folder / "config.json").write_bytes(config_json(weights.config, weights.tensors, changes))
    if served := options.LAYOUT.unserved(changes["quantization_config"]):
        packages = " and ".join(options.LAYOUT.PACKAGES)
        report.warn(f"{served}: this folder loads in transformers with the packages {packages}.")


class _Run:
    """What all blocks have in common."""

    def __init__(self, skeleton: Skeleton, shards: Shards, options: CalibratedOptions, report: Report) -> None:
        self._skeleton, self._shards, self._options, self._report = skeleton, shards, options, report
        self._turned = skeleton.config.model_type in TRANSPOSED
        known = architecture_of(as_mapping(skeleton.config))
        if known is None:
            report.log(
                f"'{skeleton.config.model_type}' is not known here: its layers are rounded without scale search."
            )
        self._groups = known.groups if known else ()
        alone = skeleton.config.model_type in ONE_BY_ONE or getattr(skeleton.config, "alibi", False)
        self._tokens = 1 if alone else BATCH

    def block(self, index: int, hidden: Any, call: Call, last: bool) -> None:
        """Quantize a block, write it, and put its outputs in the place of its inputs.

        Args:
            index: Of the block.
            hidden: Its inputs, [windows, length, hidden_size]; its outputs afterwards.
            call: What else it is called with.
            last: Whether nobody hears its outputs.
        """
        tensors = self._skeleton.fill(index)
        linears = [name for name, t in tensors.items() if not self._options.skips(t)]
        state = self._shards.restore(tensors)
        if state is None:
            groups = self._complete([name.removesuffix(".weight") for name in linears])
            statistics = self._listen(index, groups, hidden, call)
            scaled = self._read(index, linears)
            grids = self._solve(scaled, groups, statistics)
            state = {name: values.cpu().numpy() for name, values in scaled.items()}
            self._shards.write(tensors, state, grids)
            state |= {f"{name}.weight": grid.weight() for name, grid in grids.items()}
        if not last:
            self._put(index, state, linears)
            for first, batch in self._batches(hidden):
                hidden[first : first + len(batch)] = self._forward(index, batch, call).cpu()
        self._skeleton.empty(index)

    def _complete(self, linears: Sequence[str]) -> list[Group]:
        """Return the groups of a block: those that are known, and each other linear layer alone."""
        known = [group for group in self._groups if all(name in linears for name in group.linears)]
        rest = [name for name in linears if not any(name in group.linears for group in known)]
        return [*known, *(Group((name,)) for name in rest)]

    def _listen(self, index: int, groups: list[Group], hidden: Any, call: Call) -> list[Statistics]:
        statistics = [Statistics() for _ in groups]
        block = self._skeleton.blocks[index]
        hooks = [
            block.get_submodule(group.linears[0]).register_forward_pre_hook(found)
            for group, found in zip(groups, statistics, strict=True)
        ]
        for _, batch in self._batches(hidden):
            self._forward(index, batch, call)
        for hook in hooks:
            hook.remove()
        return statistics

    def _forward(self, index: int, batch: Any, call: Call) -> Any:
        found = self._skeleton.blocks[index](batch.to(self._skeleton.device), *call.args, **call.kwargs)
        return found[0] if isinstance(found, tuple | list) else found

    def _batches(self, hidden: Any) -> Any:
        """Return the windows some at a time, each time with the number of the first."""
        step = max(self._tokens // hidden.shape[1], 1)
        return ((first, hidden[first : first + step]) for first in range(0, len(hidden), step))

    def _read(self, index: int, linears: list[str]) -> State:
        """Return the block's tensors in float32."""
        block = self._skeleton.blocks[index]
        return {
            name: (p.T if self._turned and name in linears else p).detach().float()
            for name, p in block.named_parameters()
        }

    def _put(self, index: int, state: Mapping[str, Numbers], linears: list[str]) -> None:
        """Put tensors in the place of the block's."""
        import torch

        for name, p in self._skeleton.blocks[index].named_parameters():
            values = torch.as_tensor(state[name])
            p.copy_(values.T if self._turned and name in linears else values)

    def _solve(self, state: State, groups: list[Group], statistics: list[Statistics]) -> dict[str, Grid]:
        """Find what the linear layers of a block are rounded to; the tensors are scaled on the way."""
        import torch

        grams = [found.gram for found in statistics]
        scales: list[Any] = [None] * len(groups)
        for i, (group, found) in enumerate(zip(groups, statistics, strict=True)):
            if not torch.isfinite(grams[i]).all():
                raise SpecError(
                    f"'{group.linears[0]}' gets numbers that are not finite: the model is damaged, choose another."
                )
            if group.fold and self._options.scale_search:
                scales[i] = search(_stacked(state, group), grams[i], found.magnitude, self._options)
        for i, (group, scale) in enumerate(zip(groups, scales, strict=True)):
            if scale is not None:
                exact = fold_scale(state, group, scale, self._skeleton.dtype)
                grams[i] = grams[i] / exact / exact[:, None]
        grids: dict[str, Grid] = {}
        for group, gram in zip(groups, grams, strict=True):
            weight, first = _stacked(state, group), 0
            solved = solve(weight, gram, self._options, self._report)
            if self._options.error_feedback:
                solved = refine(weight, gram, solved, self._options)
            for name in group.linears:
                last = first + len(state[f"{name}.weight"])
                grids[name] = solved.part(first, last)
                first = last
        return grids


def _stacked(state: State, group: Group) -> Any:
    import torch

    return torch.cat([state[f"{name}.weight"] for name in group.linears])
