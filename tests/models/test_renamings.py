"""What transformers' classes call a checkpoint's tensors: read from its source, compared with what its code does."""

import re

import pytest

from backend.models.families import is_taken
from backend.models.native import picture_types, text_types
from backend.models.renamings import name_in_class, renamings

KINDS = sorted(kind for kind in text_types() | picture_types() if is_taken(kind) and renamings(kind))


def samples(entries):
    """Return names that the patterns were written for, as far as a pattern shows one."""
    plain = [p.replace("\\d+", "7").replace("\\", "").strip("^$()") for entry in entries for p in entry.source_patterns]
    parts = [part.strip(".") for part in plain if re.fullmatch(r"[\w.]+", part)]
    return [name for part in parts for name in (f"{part}.weight", f"model.layers.3.{part}.weight", f"layers.3.{part}")]


@pytest.mark.real
def test_tensors_are_called_what_transformers_calls_them():
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, apply_renamings

    wrong, changed = set(), 0
    for kind in KINDS:
        entries = [entry for entry in get_checkpoint_conversion_mapping(kind) if type(entry) is WeightRenaming]
        for name in samples(entries):
            theirs = apply_renamings(name, entries)
            changed += theirs != name
            if name_in_class(name, kind) != theirs:
                wrong.add(kind)
    assert wrong == {"inkling2_loop_text"}  # whose table is computed from another one's
    assert {"deepseek_v4", "granitemoehybrid", "minimax_m2", "mixtral"} <= set(KINDS)
    assert changed > 300


def test_a_type_that_is_not_renamed_keeps_its_names():
    assert name_in_class("model.layers.0.mlp.up_proj.weight", "llama") == "model.layers.0.mlp.up_proj.weight"
