"""Towers that transformers builds with a package which is not installed: an empty one stands in for each.

The model keeps its class and the names of its layers, and reads text. The tower's tensors are not loaded; whatever is
made from the model's files has them as they are.
"""

from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any

from backend.models.families import TOWERS_OF


def tower_package(config: Mapping[str, Any]) -> str | None:
    """Return the package that what reads pictures in a model is built with, beside transformers; None of most.

    Args:
        config: What the model's config.json says.
    """
    tower = config.get("vision_config")
    return TOWERS_OF.get(str(tower.get("model_type"))) if isinstance(tower, Mapping) else None


@cache
def stand_in() -> None:
    """Have transformers build an empty tower wherever the package for the real one is missing."""
    from transformers import CONFIG_MAPPING, AutoModel, PreTrainedModel

    for model_type, package in TOWERS_OF.items():
        if find_spec(package) is None:
            config = CONFIG_MAPPING[model_type]
            AutoModel.register(config, type("EmptyTower", (PreTrainedModel,), {"config_class": config}), exist_ok=True)
