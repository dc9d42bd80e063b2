"""The cache of keys and values: the scales with which engines keep it in 8 bits, from what calibration puts into it.

The largest key and the largest value become the largest number of the type F8_E4M3, as llm-compressor does it; vLLM
reads the scales beside the weights of an attention.
"""

from collections.abc import Iterable, Iterator, Mapping
from inspect import signature
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import SpecError
from backend.quantize.calibrated.numbers import LARGEST
from backend.quantize.input_rounding import Rounds
from backend.strict_json import quoted

SCHEME: dict[str, Any] = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}
"""What config.json says of it."""

SCALES = _KEYS, _VALUES = "k_scale", "v_scale"

_BESIDE = {"k_proj": (_KEYS,), "v_proj": (_VALUES,), "qkv_proj": (_KEYS, _VALUES)}
"""By the last part of a layer's name, the scales that lie beside it."""


_CALLED = ("cache", "past_key_values")
"""What attentions of transformers call the cache, from 5.24 on and before."""


def beside(name: str) -> tuple[str, ...]:
    """Return the names of the scales that lie beside a layer's weight.

    Args:
        name: Of the weight.
    """
    attention, _, last = name.removesuffix(".weight").rpartition(".")
    return tuple(f"{attention}.{scale}" for scale in _BESIDE.get(last, ()))


class _Replaced:
    """Stands for the cache of an attention.

    Args:
        attention: Torch's module, which is called with the cache.
    """

    def __init__(self, attention: Any) -> None:
        known = signature(attention.forward).parameters
        self._name = next((name for name in _CALLED if name in known), _CALLED[0])
        self._cache: Any = None
        self._hook = attention.register_forward_pre_hook(self._replace, with_kwargs=True)

    def _replace(self, module: Any, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        self._cache = kwargs.get(self._name)
        return args, {**kwargs, self._name: self}


class Largest(_Replaced):
    """Notes the largest that is put into the cache of an attention, and gives it back."""

    def __init__(self, attention: Any) -> None:
        super().__init__(attention)
        self._found = {_KEYS: 0.0, _VALUES: 0.0}

    def update(self, keys: Any, values: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Note keys, with their positions in them, and values."""
        for name, put in ((_KEYS, keys), (_VALUES, values)):
            self._found[name] = max(self._found[name], put.abs().max().item())
        return keys, values

    def scales(self, names: Iterable[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Give the attention its own cache again, and yield names of scales, and the scales, [1].

        Raises:
            SpecError: Nothing was put into the cache.
        """
        self._hook.remove()
        for name in names:
            found = self._found[name.rpartition(".")[2]]
            if not found:
                raise SpecError(f"kv_cache_dtype: nothing is put into the cache of {quoted(name)}: choose auto.")
            yield name, np.array([found / LARGEST], np.float32)


class Rounded(_Replaced):
    """Rounds what is put into the cache of an attention, and what the attention reads where there is none.

    Args:
        attention: Torch's module.
        rounds: By the names of the scales, what rounds keys and values.
    """

    def __init__(self, attention: Any, rounds: Mapping[str, Rounds]) -> None:
        super().__init__(attention)
        self._rounds = rounds

    def update(self, keys: Any, values: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Round keys, with their positions in them, and values, and put them where they belong."""
        keys = self._rounds[_KEYS](keys.float()).to(keys.dtype)
        values = self._rounds[_VALUES](values.float()).to(values.dtype)
        if self._cache is None:
            return keys, values
        found: tuple[Any, Any] = self._cache.update(keys, values, *args, **kwargs)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)
