"""Rounding the linear layers of a block, or of an expert: scales are searched and folded, then each group is solved."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from backend.errors import SpecError
from backend.progress import Report
from backend.quantize.calibrated.architectures import Group
from backend.quantize.calibrated.channel_scales import State, fold_scale, search
from backend.quantize.calibrated.error_feedback import solve
from backend.quantize.calibrated.input_statistics import Statistics
from backend.quantize.calibrated.options import CalibratedOptions
from backend.quantize.calibrated.refit_scales import refit
from backend.quantize.layouts.layout import Grid


def round_groups(
    state: State,
    groups: Sequence[Group],
    statistics: Sequence[Statistics],
    options: CalibratedOptions,
    report: Report,
    dtype: Any,
) -> dict[str, Grid]:
    """Find what linear layers are rounded to.

    Args:
        state: Their weights and what scales fold into, which is scaled on the way.
        groups: Of layers with one input, in the order in which they are computed.
        statistics: What each group heard; their Gram matrices are taken.
        options: What is done.
        report: Receives where more had to be damped.
        dtype: Torch's type in which norms are kept.

    Returns:
        By the layers' names.

    Raises:
        SpecError: A layer hears numbers that are not finite.
    """
    grams = [_gram(state, group, found) for group, found in zip(groups, statistics, strict=True)]
    scales: list[Any] = [None] * len(groups)
    for i, (group, found) in enumerate(zip(groups, statistics, strict=True)):
        if group.fold and options.scale_search and found.heard:
            size = found.magnitude if options.rounds_inputs is None else grams[i].diagonal().sqrt()
            scales[i] = search(_stacked(state, group), grams[i], size, options, found.kept)
    for i, (group, scale) in enumerate(zip(groups, scales, strict=True)):
        if scale is not None:
            scales[i] = exact = fold_scale(state, group, scale, dtype)
            grams[i] = grams[i] / exact / exact[:, None]
    grids: dict[str, Grid] = {}
    for group, found, gram, scale in zip(groups, statistics, grams, scales, strict=True):
        first, weight = 0, _stacked(state, group)
        unit = options.numbers.unit(weight)
        weight *= unit
        solved = solve(weight, gram, options, report)
        if options.error_feedback:
            solved = refit(weight, gram, solved, options)
        solved = solved._replace(scales=solved.scales / np.float32(unit), unit=unit, reach=_reach(found, scale))
        for name in group.linears:
            last = first + len(state[f"{name}.weight"])
            grids[name] = solved.part(first, last)
            first = last
    return grids


def _gram(state: State, group: Group, found: Statistics) -> Any:
    """Return the Gram matrix of a group's input; of one that heard nothing, that of inputs without a pattern."""
    import torch

    weight = state[f"{group.linears[0]}.weight"]
    gram = found.take_gram() if found.heard else torch.eye(weight.shape[1], device=weight.device)
    if not torch.isfinite(gram).all():
        raise SpecError(f"'{group.linears[0]}' gets numbers that are not finite: the model is damaged, choose another.")
    return gram


def _reach(found: Statistics, scale: Any) -> float:
    """Return the largest magnitude of a group's inputs, which a scale divides; 0 where it heard nothing."""
    if not found.heard:
        return 0.0
    return float((found.peak if scale is None else found.peak / scale).max())


def _stacked(state: State, group: Group) -> Any:
    import torch

    return torch.cat([state[f"{name}.weight"] for name in group.linears])
