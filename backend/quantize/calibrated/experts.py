"""Experts of a mixture: each is rounded on the tokens that its router sends there, one after the other.

What the experts' module is called with is kept in memory, as large as the block's input; from it the inputs of both
halves of an expert are computed when its turn comes, so that one expert's Gram matrices are in memory at a time.
"""

from collections.abc import Iterator
from typing import Any

from backend.quantize.calibrated.architectures import Fold, Group
from backend.quantize.calibrated.channel_scales import State
from backend.quantize.calibrated.input_statistics import Statistics

FEW = 2
"""Tokens for each of an expert's inputs below which it hears tokens that its router sends elsewhere too.

Measured on a layer of 576 inputs whose tokens fall into four clusters, on further tokens of the two largest: with 72,
288, 576 and 1024 of their own tokens the error is 15, 23, 13 and 4 % smaller with what is lent.
"""

LENT = 2
"""Tokens of its layer for each of its inputs, that an expert is lent which saw too few."""

BATCH = 4096
"""Tokens that go through an expert at a time."""


class Experts:
    """The experts in one module, which transformers holds in two tensors.

    Args:
        module: Torch's; its first half is `gate_up_proj`, or `up_proj` where nothing gates, its second `down_proj`.
        matrices: Of each expert, the weights by what they are: `gate_proj`, `up_proj`, `down_proj`; views into the
            module's tensors, [out_features, in_features].
    """

    def __init__(self, module: Any, matrices: dict[int, dict[str, Any]]) -> None:
        self._module, self.matrices = module, matrices
        self._inputs: list[Any] = []
        self._chosen: list[Any] = []
        self.lent = 0

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self.matrices))

    def listen(self) -> Any:
        """Note what the module is called with, until the handle that is returned is removed."""
        return self._module.register_forward_pre_hook(self._note, with_kwargs=True)

    def state(self, expert: int) -> State:
        """Return an expert's weights in float32."""
        return {f"{name}.weight": weight.detach().float() for name, weight in self.matrices[expert].items()}

    @property
    def groups(self) -> list[Group]:
        """The layers of an expert with one input; a scale folds where nothing but a product lies between."""
        first = tuple(name for name in ("gate_proj", "up_proj") if name in next(iter(self.matrices.values())))
        plain = len(first) == 2 and not self._own_gate and not hasattr(self._module, f"{self._first}_bias")
        return [Group(first), Group(("down_proj",), Fold("up_proj") if plain else None)]

    def statistics(self, expert: int) -> list[Statistics]:
        """Return what each of the groups hears; an expert that saw too few tokens is lent some of its layer's."""
        import torch

        device = getattr(self._module, self._first).device
        heard = torch.cat([x[(index == expert).any(1)] for x, index in zip(self._inputs, self._chosen, strict=True)])
        width = heard.shape[1]
        if len(heard) < FEW * width:
            self.lent += 1
            step = max(1, sum(map(len, self._inputs)) // (LENT * width))
            heard = torch.cat([heard, *(x[::step] for x in self._inputs)])
        first, second = Statistics(), Statistics()
        for at in range(0, len(heard), BATCH):
            x = heard[at : at + BATCH].to(device)
            first.add(x)
            second.add(self._between(expert, x))
        return [first, second]

    def forget(self) -> None:
        """Let go of what was noted."""
        self._inputs, self._chosen = [], []

    @property
    def _first(self) -> str:
        return "gate_up_proj" if hasattr(self._module, "gate_up_proj") else "up_proj"

    @property
    def _own_gate(self) -> bool:
        """Whether the two halves of the first layer meet in another way than a product with an activation."""
        from transformers.integrations.moe import _default_apply_gate

        return getattr(type(self._module), "_apply_gate", _default_apply_gate) is not _default_apply_gate

    def _note(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        import torch

        args = (*args, *kwargs.values())
        x = args[0].reshape(-1, args[0].shape[-1])
        if len(args) > 1:
            index = args[1].reshape(len(x), -1)
        else:  # Llama 4 calls each expert with all tokens, scaled by the router: those of others are zeros
            there = x.abs().amax(1) > 0
            index = torch.arange(len(self.matrices), device=x.device).repeat_interleave(len(x) // len(self.matrices))
            x, index = x[there], index[there, None]
        self._inputs.append(x.cpu())
        self._chosen.append(index.cpu())

    def _between(self, expert: int, x: Any) -> Any:
        """Return what an expert's second layer gets."""
        import torch

        module, weights = self._module, getattr(self._module, self._first)[expert]
        bias = getattr(module, f"{self._first}_bias", None)
        turned = getattr(module, "is_transposed", True)  # Llama 4's alone do not say
        y = torch.nn.functional.linear(x, weights.T if turned else weights, None if bias is None else bias[expert])
        if self._first == "up_proj":
            return module.act_fn(y)
        if hasattr(module, "_apply_gate"):
            return module._apply_gate(y)
        gate, up = y.chunk(2, -1)
        return module.act_fn(gate) * up
