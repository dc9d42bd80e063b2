"""Rows side by side in one sequence, each seeing itself alone: whether a model can do that."""

from collections.abc import Sequence
from typing import Any

from backend.finetune import costs
from backend.finetune.options import FinetuneOptions
from backend.finetune.rendering import Rendered
from backend.progress import Report

LEAK = 0.05
"""Change of the largest logit that is still the rounding of bfloat16."""


def fits_side_by_side(model: Any, rows: Sequence[Rendered], options: FinetuneOptions, report: Report) -> bool:
    """Return whether rows can lie side by side in one sequence, each seeing itself alone; asked of the model itself."""
    import torch

    batch = options.per_device_train_batch_size * (options.max_length if options.packing else _usual(rows))
    flash = model.config._attn_implementation.startswith("flash")
    if options.per_device_train_batch_size == 1 and not options.packing:
        return False
    if batch > costs.SIDE_BY_SIDE_TOKENS and not flash:
        report.log("Rows are padded: together they are too long to lie side by side without flash attention.")
        return False
    if any(isinstance(module, torch.nn.Conv1d) for module in model.modules()):
        report.log("Rows are padded: this model has layers that would hear of rows that lie side by side before them.")
        return False
    if flash:
        return True
    first, second = (row.input_ids[:32] for row in (rows[0], rows[-1]))
    place = model.device
    with torch.inference_mode():
        alone = model(input_ids=torch.tensor([second], device=place)).logits[0].float()
        together = (
            model(
                input_ids=torch.tensor([first + second], device=place),
                position_ids=torch.tensor([[*range(len(first)), *range(len(second))]], device=place),
            )
            .logits[0, len(first) :]
            .float()
        )
    leak = float((alone - together).abs().max() / alone.abs().max())
    if leak > LEAK:
        report.log("Rows are padded: this model's attention would see across rows that lie side by side.")
    return leak <= LEAK


def _usual(rows: Sequence[Rendered]) -> int:
    """Return the tokens that nine of ten rows do not exceed."""
    lengths = sorted(len(row.input_ids) for row in rows)
    return lengths[len(lengths) * 9 // 10]
