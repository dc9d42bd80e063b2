"""Filling: which parameter of a class each tensor of a checkpoint becomes, and putting it there.

transformers' own loader says and does both (its conversion mappings know what a type's checkpoints are named), a few
tensors at a time here.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from backend.models.loading import progress_of
from backend.progress import silent
from backend.quantize.matrices import stacks
from backend.weights.tensor import Tensor

_EXPERT = re.compile(r"\.experts\.(\d+)\.")


class Place(NamedTuple):
    """What a tensor of a checkpoint becomes.

    Attributes:
        parameter: Its name in the class.
        expert: The number of the expert where all of a mixture become one parameter; None: elsewhere.
        part: Its place among those that lie side by side in the parameter's outputs.
        parts: How many these are.
    """

    parameter: str
    expert: int | None = None
    part: int = 0
    parts: int = 1


class Filler:
    """Puts a checkpoint's tensors into a model.

    Args:
        model: Of transformers; its parameters need no data.
        names: Of the checkpoint's tensors.

    Attributes:
        places: Of each tensor, by its name; of one that no model reads, what its name would be in the class.
    """

    def __init__(self, model: Any, names: Iterable[str]) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        self._model = model
        self._mapping = get_model_conversion_mapping(model)
        self._state = model.state_dict()
        self._renamings = [entry for entry in self._mapping if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in self._mapping if isinstance(entry, WeightConverter)]
        self._sources = {
            pattern: entry.source_patterns for entry in self._converters for pattern in entry.source_patterns
        }
        self.places = {name: self._place(name) for name in names}

    def reads(self, name: str) -> bool:
        """Return whether the model has a place for a tensor."""
        return self.places[name].parameter in self._state

    def stack(self, name: str) -> Tensor | None:
        """Return the tensor with all experts that a matrix of one is a part of, where the model is read from such.

        Args:
            name: Of the matrix, as it lies by itself.
        """
        if self.reads(name):
            return None
        found = ((stack, self._place(stack).parameter) for stack in stacks(name))
        there = ((stack, self._state[parameter].shape) for stack, parameter in found if parameter in self._state)
        return next((Tensor(name=stack, dtype="F32", shape=tuple(shape)) for stack, shape in there), None)

    def fill(self, tensors: Mapping[str, Any], device: str, dtype: Any) -> None:
        """Put tensors into the model, all of those at once that become one parameter.

        Args:
            tensors: By their names in the checkpoint.
            device: Where they go.
            dtype: Torch's type that the model computes in.
        """
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        config = LoadStateDictConfig(weight_mapping=self._mapping, device_map={"": device}, dtype=dtype)
        with progress_of(silent()):
            convert_and_load_state_dict_in_model(self._model, dict(tensors), config)

    def _place(self, name: str) -> Place:
        from transformers.core_model_loading import rename_source_key

        prefix = self._model.base_model_prefix
        found, pattern = rename_source_key(name, self._renamings, self._converters, prefix, self._state)
        if found not in self._state and name in self._state:
            found, pattern = rename_source_key(name, [], [], prefix, self._state)
        expert = _EXPERT.search(name)
        if pattern is None or expert is None:
            return Place(found)
        sources = self._sources[pattern]
        return Place(found, int(expert[1]), sources.index(pattern), len(sources))
