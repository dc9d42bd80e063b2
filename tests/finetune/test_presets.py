"""Presets: each is a training that can be done, leaves nothing of another, and fits the model."""

import pytest

from backend.finetune.options import FinetuneOptions
from backend.finetune.presets import FIELDS, PRESETS, preset_of, preset_values
from backend.models.demo import demo_facts


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_recognized_in_the_options_that_it_sets(name):
    options = FinetuneOptions(**preset_values(name, demo_facts()))
    assert preset_of(options, demo_facts()) == name
    assert preset_of(options.model_copy(update={"r": 3}), demo_facts()) is None


def test_choosing_another_preset_leaves_nothing_of_the_first():
    first = FinetuneOptions(**preset_values("quick-look", None))
    then = FinetuneOptions(**first.model_dump() | preset_values("thorough", None))
    assert then == FinetuneOptions(**preset_values("thorough", None))
    assert then.max_steps == -1


def test_a_preset_touches_no_option_that_presets_do_not_set():
    mine = FinetuneOptions(seed=7, quantization="int8", weight_decay=0.1)
    then = FinetuneOptions(**mine.model_dump() | preset_values("thorough", None))
    assert {name for name in FinetuneOptions.model_fields if getattr(then, name) != getattr(mine, name)} <= set(FIELDS)
    assert (then.seed, then.quantization, then.weight_decay) == (7, "int8", 0.1)


def test_no_preset_makes_rows_longer_than_the_model_reads():
    small = demo_facts().model_copy(update={"context_length": 768})
    lengths = {name: preset_values(name, small)["max_length"] for name in PRESETS}
    assert lengths == {"quick-look": 512, "balanced": 768, "thorough": 768}
    for name in PRESETS:
        FinetuneOptions(**preset_values(name, small)).check(small)


def test_balanced_is_what_one_gets_without_choosing():
    assert preset_of(FinetuneOptions(), None) == "balanced"
