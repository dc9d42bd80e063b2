"""Presets: three ways to set a training, from a first look to a long run; form and command line fill from them."""

from typing import Any, Literal, NamedTuple

from backend.finetune.options import FinetuneOptions
from backend.models.facts import ModelFacts

PresetName = Literal["quick-look", "balanced", "thorough"]


class Preset(NamedTuple):
    """A named choice of options."""

    title: str
    summary: str
    values: dict[str, Any]


PRESETS: dict[PresetName, Preset] = {
    "quick-look": Preset(
        "Quick look",
        "60 steps with a small adapter: shows whether the rows teach what they should.",
        {"r": 8, "lora_alpha": 16, "num_train_epochs": 1.0, "max_steps": 60, "max_length": 512},
    ),
    "balanced": Preset(
        "Balanced",
        "Each row three times, rank 16: right for most data sets.",
        {"r": 16, "lora_alpha": 32, "num_train_epochs": 3.0, "max_length": 1024},
    ),
    "thorough": Preset(
        "Thorough",
        "Each row six times, rank 64, slower learning; with validation rows it ends when these get no better.",
        {"r": 64, "lora_alpha": 64, "learning_rate": 1e-4, "lr_scheduler_type": "cosine", "num_train_epochs": 6.0,
         "max_length": 2048, "early_stopping_patience": 3},
    ),
}  # fmt: skip

FIELDS = tuple(dict.fromkeys(name for preset in PRESETS.values() for name in preset.values))
"""What presets set: each sets all of these, so that nothing stays of another; no preset touches any other option."""


def preset_values(name: PresetName, facts: ModelFacts | None) -> dict[str, Any]:
    """Return what a preset sets, for a model: its rows are never longer than the model's context.

    Args:
        name: Of the preset.
        facts: Of the model; None: whatever the model.
    """
    values = {field: FinetuneOptions.model_fields[field].default for field in FIELDS} | PRESETS[name].values
    longest = facts.context_length if facts else None
    return values | ({"max_length": min(values["max_length"], longest)} if longest else {})


def preset_of(options: FinetuneOptions, facts: ModelFacts | None) -> PresetName | None:
    """Return the preset that options are set as, if they are."""
    set_as = {field: getattr(options, field) for field in FIELDS}
    return next((name for name in PRESETS if preset_values(name, facts) == set_as), None)
