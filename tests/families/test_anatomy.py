"""What is worked on is what transformers converts: rules by name against its own classes, built without weights."""

import pytest
import torch

from backend.models.families import TRAITS, is_taken
from backend.models.native import picture_types, text_types
from backend.models.towers import stand_in
from backend.weights.anatomy import HEADS, block_of, is_beside, is_linear, kept
from backend.weights.tensor import Tensor
from tests.support.family_models import FAMILIES, config_of

UNUSUAL = {kind for kind, known in TRAITS.items() if not known.converted}
TAKEN = sorted(kind for kind in text_types() | picture_types() if is_taken(kind))


def built(kind):
    """Build the classes of a model type on the meta device: what reads pictures, and the text model alone."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

    stand_in()
    configs = [config_of(family) for family in FAMILIES.values() if family.model_type == kind]
    try:
        configs = configs or [shallow(CONFIG_MAPPING[kind]())]
        tables = ((AutoModelForCausalLM, text_types()), (AutoModelForImageTextToText, picture_types()))
        autos = [auto for auto, types in tables if kind in types]
        with torch.device("meta"):
            return [auto.from_config(config) for config in configs for auto in autos]
    except (TypeError, ValueError, AttributeError, KeyError, ImportError):
        return []  # its default config is not one that it can be built from, or it wants a package


def shallow(config):
    """Leave two blocks of each of a config's models."""
    for part in (config, *(getattr(config, name, None) for name in ("text_config", "vision_config"))):
        for name in ("num_hidden_layers", "n_layer", "num_layers", "depth"):
            if isinstance(getattr(part, name, None), int):
                setattr(part, name, 2)
        if getattr(part, "layer_types", None):
            part.layer_types = part.layer_types[:2]
    return config


@pytest.mark.real
def test_what_is_worked_on_is_what_transformers_converts():
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    wrong, seen = {}, set()
    for kind in sorted(set(TAKEN) - UNUSUAL):
        for model in built(kind):
            tensors = [Tensor(name=n, dtype="BF16", shape=tuple(p.shape)) for n, p in model.named_parameters()]
            named = kept(tensors)
            skipped = [*named, *HEADS, "decoder"] if named else get_keys_to_not_convert(model)
            skipped += [*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())]
            linear = [n for n, m in model.named_modules() if type(m) is torch.nn.Linear or isinstance(m, Conv1D)]
            theirs = {name for name in linear if should_convert_module(name, skipped)}
            ours = {tensor.name.removesuffix(".weight") for tensor in tensors if is_linear(tensor)}
            if ours != theirs:
                wrong[kind] = sorted(ours ^ theirs)[:5]
            seen.add(kind)
    assert not wrong
    assert {family.model_type for family in FAMILIES.values()} - UNUSUAL <= seen
    assert len(seen) > 150


@pytest.mark.real
def test_no_tower_is_in_a_block_of_the_text_model():
    for kind in sorted(picture_types() & set(TAKEN) & {family.model_type for family in FAMILIES.values()}):
        for model in built(kind):
            layers = model.config.get_text_config().num_hidden_layers
            names = [name for name, _ in model.named_parameters()]
            assert {block_of(name) for name in names} == {-1, *range(layers)}, kind
            towers = [name for name in names if is_beside(name)]
            assert bool(towers) == hasattr(model.config, "vision_config"), kind
