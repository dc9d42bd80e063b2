"""Skeleton: a model as transformers builds it, without weights; its parts are filled one after the other.

What each block is called with beside its input (rotary embeddings, masks) is what the model's own code makes: it runs
once with blocks that only note it down.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from backend.errors import SpecError
from backend.models.loading import auto_class, device
from backend.models.rewriting import loaded_dtype
from backend.models.torch_weights import read
from backend.strict_json import quoted
from backend.weights.anatomy import block_of
from backend.weights.checkpoint import Weights
from backend.weights.tensor import Tensor

_RENAMED = {"lm_head.weight": "embed_out.weight"}
"""Parameters that transformers calls otherwise than the checkpoints of GPT-NeoX do."""


class Call(NamedTuple):
    """What a block is called with beside its input."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Skeleton:
    """A model whose blocks are filled and emptied.

    Args:
        weights: The model's.

    Attributes:
        config: As transformers has it, defaults included.
        dtype: Torch's type that it computes in.
        device: Where it computes.
        path: Name of the list of blocks, as transformers names it.
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
        self.config = self._model.config
        self.path, self.blocks = _find_blocks(self._model, weights.name)

    def embed(self, ids: Any) -> tuple[Any, list[Call]]:
        """Return the input of the first block and what each block is called with.

        Args:
            ids: Tokens, [windows, length].

        Returns:
            Numbers in the model's type, [windows, length, hidden_size], in memory; and a call for each block.
        """
        import torch

        outside = self._model.base_model
        prefix = _prefix(self._model)
        names = [name for name, _ in outside.named_parameters() if block_of(prefix + name) < 0]
        self._fill(outside, names, prefix)
        recorders = [_Recorder(last=index == len(self.blocks) - 1) for index in range(len(self.blocks))]
        forwards = [block.forward for block in self.blocks]
        inputs = torch.empty(0)
        for block, recorder in zip(self.blocks, recorders, strict=True):
            block.forward = recorder
        with torch.inference_mode():
            for i, window in enumerate(ids):
                self._call(outside, torch.from_numpy(window)[None].to(self.device))
                first = recorders[0].hidden[0]
                inputs = inputs if i else torch.empty(len(ids), *first.shape, dtype=self.dtype)
                inputs[i] = first
        for block, forward in zip(self.blocks, forwards, strict=True):
            block.forward = forward
        _drop(outside, names)
        return inputs, [recorder.call for recorder in recorders]

    def _call(self, outside: Any, ids: Any) -> None:
        """Run a model until its last block is called."""
        try:
            outside(input_ids=ids, use_cache=False)
        except _Heard:
            pass
        except (ValueError, TypeError, AttributeError, IndexError) as e:
            kind, name = self.config.model_type, self._weights.name
            raise SpecError(
                f"'{name}' is of the type '{kind}', whose blocks hand on more than one tensor, and gptq and awq go"
                " through them one by one: choose method nf4 or int8."
            ) from e

    def fill(self, index: int) -> dict[str, Tensor]:
        """Read a block's weights into it.

        Returns:
            The tensors by their names within the block.
        """
        block = self.blocks[index]
        self._fill(block, [name for name, _ in block.named_parameters()], f"{self.path}.{index}.")
        return self.tensors_of(index)

    def tensors_of(self, index: int) -> dict[str, Tensor]:
        """Return a block's tensors by their names within the block."""
        ends = [f"{self.path}.{index}.", f"{self.path.partition('.')[2]}.{index}."]
        return {
            name.removeprefix(start): tensor
            for name, tensor in self._tensors.items()
            for start in ends
            if name.startswith(start)
        }

    def empty(self, index: int) -> None:
        """Take a block's weights out of memory; they are not read again."""
        _drop(self.blocks[index], [name for name, _ in self.blocks[index].named_parameters()])
        for tensor in self.tensors_of(index).values():
            self._weights.release(tensor)

    def _fill(self, module: Any, names: list[str], prefix: str) -> None:
        for name in names:
            tensor = named(self._tensors, prefix + name)
            if tensor is None:
                raise SpecError(
                    f"{quoted(prefix + name)} is missing in '{self._weights.name}': choose a complete model."
                )
            put(module, name, read(self._weights, tensor).to(self.device, self.dtype))


class _Heard(Exception):
    """All blocks have been called: what comes after them is not needed, and some models want tuples from them."""


class _Recorder:
    """Stands for a block: notes what it is called with and gives its input on; the last one ends the forward."""

    def __init__(self, last: bool) -> None:
        self._last = last
        self.hidden: Any = None
        self.call = Call((), {})

    def __call__(self, hidden: Any, *args: Any, **kwargs: Any) -> Any:
        self.hidden, self.call = hidden, Call(args, kwargs)
        if self._last:
            raise _Heard
        return hidden


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


T = TypeVar("T")


def named(there: Mapping[str, T], name: str) -> T | None:
    """Return what a checkpoint holds for a parameter: some leave out the name of the inner model."""
    spellings = (name, name.partition(".")[2], _RENAMED.get(name, name))
    return next((there[spelling] for spelling in spellings if spelling in there), None)


def put(module: Any, name: str, values: Any) -> None:
    """Put values in the place of a parameter."""
    import torch

    path, _, last = name.rpartition(".")
    setattr(module.get_submodule(path), last, torch.nn.Parameter(values, requires_grad=False))


def _drop(module: Any, names: list[str]) -> None:
    for name in names:
        put(module, name, module.get_parameter(name).to("meta"))


def _prefix(model: Any) -> str:
    return f"{model.base_model_prefix}." if model.base_model is not model else ""


def _find_blocks(model: Any, name: str) -> tuple[str, Any]:
    """Find the one list of modules of equal classes."""
    import torch

    lists = [(path, m) for path, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)]
    equal = [(path, m) for path, m in lists if len({type(block) for block in m}) == 1 and block_of(f"{path}.0.w") == 0]
    if len(equal) != 1:
        raise SpecError(
            f"The blocks of '{name}' cannot be found, which gptq and awq go through one by one: choose nf4 or int8."
        )
    return equal[0]


def as_mapping(config: Any) -> Mapping[str, Any]:
    """Return what a config of transformers says, defaults included."""
    found: Mapping[str, Any] = config.to_dict()
    return found
