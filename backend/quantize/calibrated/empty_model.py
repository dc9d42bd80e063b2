"""Skeleton: a model as transformers builds it, without weights; its parts are filled one after the other.

What each block is called with beside its input (rotary embeddings, masks) is what the model's own code makes: it runs
once with blocks that only note it down.
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from backend.errors import SpecError
from backend.models.loading import auto_class, device
from backend.models.rewriting import loaded_dtype
from backend.models.torch_weights import read
from backend.quantize.calibrated.calls import Calls, Heard
from backend.quantize.calibrated.filling import Filler, Place
from backend.strict_json import quoted
from backend.weights.anatomy import block_of, is_beside, output_head
from backend.weights.checkpoint import Weights
from backend.weights.tensor import Tensor

_ALWAYS_CALLED = (".embed_vision.", ".embed_audio.")
"""Parts of the names of what Gemma 3n calls on any text, though only pictures and sound need it."""

MOST = 3
"""Values that blocks return at most."""


class Block(NamedTuple):
    """A block that is filled.

    Attributes:
        module: Torch's.
        tensors: What the checkpoint holds of it, by their names there.
        places: Where each of them lies in the module; of one that no model reads, what its name would be there.
    """

    module: Any
    tensors: dict[str, Tensor]
    places: dict[str, Place]


class Skeleton:
    """A model whose blocks are filled and emptied.

    Args:
        weights: The model's.

    Attributes:
        config: Of the text model, as transformers has it, defaults included.
        dtype: Torch's type that it computes in.
        device: Where it computes.
        blocks: The blocks, empty.

    Raises:
        SpecError: transformers cannot build it, or there is no list of blocks.
    """

    def __init__(self, weights: Weights) -> None:
        import torch

        self._weights = weights
        self._tensors = {tensor.name: tensor for tensor in weights.tensors}
        self.device = device()
        named = loaded_dtype(weights.config, weights.tensors)
        # without a GPU float16 is computed by loops that are not made for it
        self.dtype = getattr(torch, "float32" if named == "float16" and self.device == "cpu" else named)
        self._model = empty_model(weights.config, self.dtype, weights.name)
        self.config = self._model.config.get_text_config(decoder=True)
        self._filler = Filler(self._model, self._tensors)
        path, self.blocks = _find_blocks(self._model, weights.name)
        self._paths = [f"{path}.{index}." for index in range(len(self.blocks))]

    @property
    def outside(self) -> list[Tensor]:
        """The tensors that are in no block of the model; one more can stand behind them and predict further tokens."""
        start = self._paths[0].removesuffix("0.")
        block = re.compile(re.escape(start) + r"(\d+)\.")
        found = {name: block.match(self._filler.places[name].parameter) for name in self._tensors}
        inside = {name for name, number in found.items() if number and int(number[1]) < len(self._paths)}
        return [tensor for name, tensor in self._tensors.items() if name not in inside]

    def embed(self, ids: Any) -> tuple[Any, list[Calls]]:
        """Return the input of the first block and what each block is called with.

        Args:
            ids: Tokens, [windows, length].

        Returns:
            Numbers in the model's type, [windows, length, hidden_size], in memory; and the calls of each block.
        """

        outside = self._model.base_model
        head = output_head(self._tensors.values())
        read_by_text = (t for t in self.outside if not is_beside(t.name) or any(p in t.name for p in _ALWAYS_CALLED))
        self._fill(t for t in read_by_text if t is not head and self._filler.reads(t.name))
        for more in range(MOST):
            try:
                found = self._listen(outside, ids, more)
            except (ValueError, TypeError, AttributeError, IndexError) as e:  # blocks of this model give more
                error = e
            else:
                _drop(outside)
                return found
        raise SpecError(
            f"'{self._weights.name}' is of the type '{self.config.model_type}', whose blocks cannot be called one by"
            " one, as gptq and awq do: choose method nf4 or int8."
        ) from error

    def _listen(self, outside: Any, ids: Any, more: int) -> tuple[Any, list[Calls]]:
        """Run a model until its last block is called, with blocks that give so many values beside their outputs."""
        import torch

        calls = [Calls(index == len(self.blocks) - 1, more) for index in range(len(self.blocks))]
        forwards = [block.forward for block in self.blocks]
        inputs = torch.empty(0)
        for block, recorder in zip(self.blocks, calls, strict=True):
            block.forward = recorder
        try:
            with torch.inference_mode():
                for i, window in enumerate(ids):
                    with suppress(Heard):
                        outside(input_ids=torch.from_numpy(window)[None].to(self.device), use_cache=False)
                    first = calls[0].hidden
                    inputs = inputs if i else torch.empty(len(ids), *first.shape[1:], dtype=self.dtype)
                    inputs[i] = first[0]
        finally:
            for block, forward in zip(self.blocks, forwards, strict=True):
                block.forward = forward
        return inputs, calls

    def fill(self, index: int) -> Block:
        """Read a block's weights into it.

        Raises:
            SpecError: Some are missing.
        """
        self._fill(tensor for name, tensor in self.tensors_of(index).items() if self._filler.reads(name))
        start, module = self._paths[index], self.blocks[index]
        if missing := next((name for name, p in module.named_parameters() if p.is_meta), None):
            raise SpecError(f"{quoted(start + missing)} is missing in '{self._weights.name}': choose a complete model.")
        return self.block(index)

    def whole(self) -> Any:
        """Read all weights, and return the model.

        Raises:
            SpecError: Some are missing.
        """
        self._fill(tensor for tensor in self.outside if self._filler.reads(tensor.name))
        for index in range(len(self.blocks)):
            self.fill(index)
        tie(self._model, self._weights.name)
        return self._model

    def block(self, index: int) -> Block:
        """Return a block that is filled."""
        tensors, start = self.tensors_of(index), self._paths[index]
        places = {name: self._filler.places[name] for name in tensors}
        inside = {n: p._replace(parameter=p.parameter.removeprefix(start)) for n, p in places.items()}
        return Block(self.blocks[index], tensors, inside)

    def tensors_of(self, index: int) -> dict[str, Tensor]:
        """Return a block's tensors by their names."""
        places, start = self._filler.places, self._paths[index]
        return {name: t for name, t in self._tensors.items() if places[name].parameter.startswith(start)}

    def empty(self, index: int) -> None:
        """Take a block's weights out of memory; they are not read again."""
        _drop(self.blocks[index])
        for tensor in self.tensors_of(index).values():
            self._weights.release(tensor)

    def _fill(self, tensors: Iterable[Tensor]) -> None:
        read_ones = {tensor.name: read(self._weights, tensor) for tensor in tensors}
        self._filler.fill(read_ones, self.device, self.dtype)


def empty_model(config: Mapping[str, Any], dtype: Any, name: str) -> Any:
    """Build a model whose parameters have no data; its buffers do, on the device that models run on.

    Args:
        config: What config.json says.
        dtype: Torch's type of the parameters.
        name: The model's, for errors.

    Raises:
        SpecError: transformers cannot build it.
    """
    from accelerate import init_empty_weights
    from transformers import PretrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        said = PretrainedConfig._decode_special_floats(dict(config))  # infinities, which JSON has none of
        known = CONFIG_MAPPING[config["model_type"]].from_dict(said)
        with init_empty_weights(include_buffers=False):
            model = auto_class(config).from_config(known, dtype=dtype)
    except (ValueError, KeyError, TypeError) as e:
        raise SpecError(f"transformers could not build '{name}': {e} Choose another model.") from e
    for module in model.modules():
        for key, buffer in module.named_buffers(recurse=False):
            setattr(module, key, buffer.to(device()))
    return model.eval()


def tie(model: Any, name: str) -> None:
    """Give a model that is filled the weights that others stand for, such as its head's; one that is there stays.

    Args:
        model: Of transformers.
        name: The checkpoint's, for errors.

    Raises:
        SpecError: Some are missing.
    """
    missing = {name for name, p in model.named_parameters() if p.is_meta}
    model.tie_weights(missing, recompute_mapping=False)
    if missing:
        raise SpecError(f"{quoted(min(missing))} is missing in '{name}': choose a complete model.")


def _drop(module: Any) -> None:
    import torch

    for part in module.modules():
        for name, p in part.named_parameters(recurse=False):
            setattr(part, name, torch.nn.Parameter(p.to("meta"), requires_grad=False))


def _find_blocks(model: Any, name: str) -> tuple[str, Any]:
    """Find the list of the text tower's blocks: of all lists of modules in no other one, that with most weights."""
    import torch

    lists = [(path, m) for path, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m)]
    outer = [(path, m) for path, m in lists if block_of(f"{path}.0.w") == 0 and not re.search(r"\.\d", path)]
    if not outer:
        raise SpecError(
            f"The blocks of '{name}' cannot be found, which gptq and awq go through one by one: choose nf4 or int8."
        )
    return max(outer, key=lambda found: sum(p.numel() for p in found[1].parameters()))


def as_mapping(config: Any) -> Mapping[str, Any]:
    """Return what a config of transformers says, defaults included."""
    found: Mapping[str, Any] = config.to_dict()
    return found
