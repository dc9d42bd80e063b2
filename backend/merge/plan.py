"""Which tensors of a base model its adapters change, and how: found from headers alone, before a weight is read.

What a module_to_save, a bias or a tied embedding becomes is what PEFT and transformers make of the model that was
trained; where PEFT's own merge_and_unload() would change a tied tensor for both of its users, the two part here.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

from backend.errors import SpecError
from backend.merge.adapter import WEIGHTS, Adapter, Lora, Rows
from backend.merge.experts import is_parameter, pieces
from backend.models.families import traits
from backend.models.renamings import name_in_class
from backend.strict_json import quoted
from backend.weights.anatomy import HEADS, TRANSPOSED, input_embeddings, inside, is_linear, output_head
from backend.weights.floats import FLOATS
from backend.weights.tensor import Tensor


class Save(NamedTuple):
    """A tensor that takes the place of the base model's, as far as its weight goes."""

    adapter: int
    tensor: Tensor
    weight: float


class Tokens(NamedTuple):
    """Rows of a tensor that are replaced, as far as their weight goes."""

    adapter: int
    rows: Rows
    weight: float


class Change(NamedTuple):
    """What an adapter adds to a tensor."""

    adapter: int
    lora: Lora
    weight: float


class Made(NamedTuple):
    """One tensor of the merged model."""

    tensor: Tensor
    source: Tensor  # in the base model
    saves: tuple[Save, ...]
    tokens: tuple[Tokens, ...]
    changes: tuple[Change, ...]
    turned: bool  # whether it is kept as [in, out]
    frees: tuple[Tensor, ...]  # of the base model, which nothing else needs after it

    def typed(self, dtype: str) -> Tensor:
        """Return the tensor in the type of the result, as safetensors names it."""
        return self.tensor.model_copy(update={"dtype": dtype}) if self.tensor.dtype in FLOATS else self.tensor


class Base(NamedTuple):
    """What planning asks of a base model."""

    name: str
    model_type: str
    tensors: Sequence[Tensor]


class Merger:
    """Collects what adapters do to a base model.

    Args:
        base: As it lies there.
    """

    def __init__(self, base: Base) -> None:
        self._base = base
        self._stored = {tensor.name: tensor for tensor in base.tensors}
        self._inside = _once((inside(name), name) for name in self._stored)
        embedding, head = input_embeddings(base.tensors), output_head(base.tensors)
        self.embedding = embedding.name if embedding else ""
        self.head = head.name if head else "lm_head.weight"
        self.tied = bool(embedding) and head is None  # one that is there counts, whatever the config says
        self._saves: dict[str, list[Save]] = {}
        self._tokens: dict[str, list[Tokens]] = {}
        self._changes: dict[str, list[Change]] = {}

    def add(self, index: int, adapter: Adapter, weight: float) -> None:
        """Take an adapter's changes.

        Raises:
            SpecError: It was made for another model; what does not fit.
        """
        for name, tensor in adapter.saved.items():
            place = self._place(name, adapter)
            shared = self._is_tied(place) and name not in adapter.own
            for target in {place, self.embedding, self.head} if shared else {place}:
                if all(save.adapter != index for save in self._saves.get(target, ())):
                    self._saves.setdefault(target, []).append(Save(index, tensor, weight))
        for name, rows in adapter.rows.items():
            place = self._place(name, adapter)
            shared = self._is_tied(place) and len(adapter.rows) == 1
            for target in {self.embedding, self.head} if shared else {place}:
                self._tokens.setdefault(target, []).append(Tokens(index, rows, weight))
        for module, lora in adapter.loras.items():
            if is_parameter(module):
                self._add_experts(index, adapter, module, weight)
                continue
            place = self._place(f"{module}.weight", adapter)
            shared = self._is_tied(place) and adapter.ties
            if shared and not lora.embedding and any(other.embedding for other in adapter.loras.values()):
                continue  # PEFT writes the matrices of the embeddings once more, turned
            for target in {self.embedding, self.head} if shared else {place}:
                self._changes.setdefault(target, []).append(Change(index, lora, weight))

    def _add_experts(self, index: int, adapter: Adapter, parameter: str, weight: float) -> None:
        """Take the changes of a mixture's experts, which lie here one by one, or all in one tensor."""
        lora = adapter.loras[parameter]
        outputs = lora.b.shape[0]
        if (whole := self._known(parameter)) is not None:
            change = Change(index, lora._replace(part=(0, 0, outputs)), weight)
            self._changes.setdefault(self._place(whole, adapter), []).append(change)
            return
        for expert in range(lora.experts):
            for names, first, last in pieces(parameter, expert, outputs):
                known = next(filter(self._known, names), names[0])
                change = Change(index, lora._replace(part=(expert, first, last)), weight)
                self._changes.setdefault(self._place(known, adapter), []).append(change)

    def made(self, adapters: Sequence[Adapter]) -> list[Made]:
        """Return the tensors of the merged model, in the base model's order.

        Raises:
            SpecError: A shape does not fit.
        """
        made: list[Made] = []
        for tensor in self._base.tensors:
            both = self.parts and tensor.name == self.embedding
            made.append(self._one(tensor.name, tensor, adapters, () if both else (tensor,)))
            if both:
                made.append(self._one(self.head, tensor, adapters, (tensor,)))
        return made

    @property
    def parts(self) -> bool:
        """Whether an output head that was the input embeddings becomes a tensor of its own."""
        return self.tied and any(
            found.get(self.head, []) != found.get(self.embedding, [])
            for found in (self._saves, self._tokens, self._changes)
        )

    def _one(self, name: str, source: Tensor, adapters: Sequence[Adapter], frees: tuple[Tensor, ...]) -> Made:
        saves, changes = tuple(self._saves.get(name, ())), tuple(self._changes.get(name, ()))
        linear = is_linear(source) and name not in (self.head, self.embedding)
        turned = self._base.model_type in TRANSPOSED and linear
        if len(source.shape) == 3 and changes:
            turned = self._are_turned(source, changes[0].lora)
        tokens = tuple(self._tokens.get(name, ()))
        shape = self._shape_saved(name, source, saves, adapters)
        for found in tokens:
            rows = max(shape[0], max(found.rows.tokens, default=0) + 1)
            _fit(
                shape,
                (rows, found.rows.tensor.shape[1]),
                f"{name} (its tokens)",
                adapters[found.adapter],
                self._base.name,
            )
        for change in changes:
            a, b = change.lora.a.shape[1], change.lora.outputs
            over = turned or change.lora.embedding
            stack = (change.lora.experts,) * (len(shape) - 2)
            _fit(shape, (*stack, *((a, b) if over else (b, a))), name, adapters[change.adapter], self._base.name)
            length = change.lora.magnitude.elements if change.lora.magnitude else b
            _fit((b,), (length,), f"{name} (lora_magnitude_vector)", adapters[change.adapter], self._base.name)
        tensor = source.model_copy(update={"name": name, "shape": shape})
        return Made(tensor, source, saves, tokens, changes, turned, frees)

    def _are_turned(self, source: Tensor, lora: Lora) -> bool:
        """Return whether experts that are one tensor lie as [experts, in, out]."""
        wide, high = lora.a.shape[1], lora.outputs
        return source.shape[1:] == (wide, high) if wide != high else traits(self._base.model_type).says_turned

    def _shape_saved(
        self, name: str, source: Tensor, saves: tuple[Save, ...], adapters: Sequence[Adapter]
    ) -> tuple[int, ...]:
        """Return the shape that a tensor has once it is replaced: an adapter may have brought more tokens."""
        shape = source.shape
        for save in saves:
            found = save.tensor.shape
            more_tokens = name in (self.embedding, self.head) and len(saves) == 1 and save.weight == 1
            if not (more_tokens and len(found) == 2 and found[1] == shape[1]):
                _fit(shape, found, name, adapters[save.adapter], self._base.name)
            shape = found
        return shape

    def _known(self, target: str) -> str | None:
        """Return the name that a tensor has here, if it is here."""
        names = (target, target.partition(".")[2], f"model.{target}", f"transformer.{target}")
        place = inside(target)
        found = next((name for name in names if name in self._stored), self._inside.get(place))
        return found or self._in_class.get(place)

    @cached_property
    def _in_class(self) -> dict[str, str]:
        """The names of tensors here, by what the model's class calls them, from their blocks' numbers on."""
        return _once((inside(name_in_class(name, self._base.model_type)), name) for name in self._stored)

    def _place(self, target: str, adapter: Adapter) -> str:
        """Find a tensor by the name that an adapter knows it by.

        That of the model in the model may be there or not, or another one, as in models that read pictures too:
        classes have renamed their parts, and checkpoints keep the old names.
        """
        found = self._known(target)
        is_head = target.removesuffix(".weight").rpartition(".")[2] in HEADS  # checkpoints of GPT-NeoX: embed_out
        if found is None and is_head and (self.tied or self.head in self._stored):
            found = self.head
        if found is None:
            raise SpecError(
                f"The adapter {quoted(adapter.name)} changes {quoted(target)}, which {quoted(self._base.name)} does not"
                f" have: {self._remedy(adapter)}."
            )
        if self._stored.get(found, self._base.tensors[0]).dtype not in FLOATS:
            raise packed(self._base.name, f"{found} is {self._stored[found].dtype}")
        return found

    def _remedy(self, adapter: Adapter) -> str:
        """Say what to do about an adapter of layers that are not here."""
        if adapter.base_model and adapter.base_model.rpartition("/")[2] == self._base.name.rpartition("/")[2]:
            return "the model's class has other names for its layers than its files, so merge it with PEFT"
        return _its_base(adapter)

    def _is_tied(self, name: str) -> bool:
        return self.tied and name in (self.embedding, self.head)


def _once(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the names of tensors by what they are called elsewhere, but for those that share that."""
    known = list(pairs)
    often = Counter(place for place, _ in known)
    return {place: name for place, name in known if often[place] == 1}


def vocabulary(made: Sequence[Made], merger: Merger) -> int | None:
    """Return the number of tokens where adapters have brought a new one, else None.

    Raises:
        SpecError: Input embeddings and output head would not have the same.
    """
    rows = Counter(one.tensor.shape[0] for one in made if one.tensor.name in (merger.embedding, merger.head))
    if all(one.tensor.shape == one.source.shape for one in made):
        return None
    if len(rows) > 1:
        first, second = sorted(rows)
        raise SpecError(
            f"Input embeddings and output head would have {first} and {second} tokens: the adapter brings only one of"
            " them. Save it again with save_embedding_layers=True."
        )
    return next(iter(rows))


def packed(base: str, how: str) -> SpecError:
    """Return the error for a base model whose weights are packed."""
    return SpecError(
        f"{quoted(base)} is quantized already ({how}), and nothing can be merged into packed weights: merge into the"
        " 16-bit model that it was made from, then quantize."
    )


def _fit(shape: tuple[int, ...], found: tuple[int, ...], name: str, adapter: Adapter, base: str) -> None:
    if shape != found:
        sizes = " × ".join(map(str, shape)), " × ".join(map(str, found))
        raise SpecError(
            f"'{WEIGHTS}' of the adapter {quoted(adapter.name)} is for {quoted(name)} of {sizes[1]}, and"
            f" {quoted(base)} has {sizes[0]}: {_its_base(adapter)}."
        )


def _its_base(adapter: Adapter) -> str:
    if adapter.base_model is None:
        return "it was made for another model, choose that one"
    return f"its own settings name {quoted(adapter.base_model)} as its base model, choose that one"
