"""Anatomy: which part of a model a tensor is, told from its name, type and shape alone.

Linear layers of the text tower are worked on. What else multiplies stays as it is: towers and projectors of pictures
and sound, routers, embeddings, the output head, heads that predict several tokens, and layers too slim to be worth it.
A test compares this with the classes of every model type that the installed transformers has.
"""

import re
from collections.abc import Iterable

from backend.weights.tensor import Tensor

_EMBEDDINGS = {
    "embed_tokens", "embed_in", "embeddings", "word_embeddings", "tok_embeddings", "tokens_embed", "wte", "w",
}  # fmt: skip
"""Last part of the names of a model's input embeddings."""

HEADS = {"lm_head", "embed_out", "output_projection", "head"}
"""Last part of the names of a model's output head."""

_NOT_LINEAR = _EMBEDDINGS | HEADS | {
    "embed_tokens_per_layer", "embed_positions", "positions_embed", "encoder_hash_tok_embedding", "wpe", "decoder",
    "gate", "router",
}  # fmt: skip
"""Last part of the names of two-dimensional weights that are no linear layer, or the output head."""

_SLIM = {
    "in_proj_a", "in_proj_b", "in_proj_ba", "a_proj", "b_proj", "igate_preact", "fgate_preact", "sink_proj",
    "shared_expert_gate", "weights_proj", "modality_router", "correction_coefs", "prediction_coefs",
}  # fmt: skip
"""Last part of the names of linear layers with a handful of outputs, a head or an expert each, that steer the rest."""

TOWERS = {
    "visual", "vision_tower", "vision_model", "high_res_vision_model", "vision_encoder", "vision_adapter",
    "vision_projection", "vision_embed_tokens", "vision_tokenizer", "visual_embeddings_table", "embed_vision",
    "audio_tower", "embed_audio", "multi_modal_projector", "mm_projector", "projector", "aligner", "connector",
    "merger", "resampler_model", "embed_tokens_extend",
}  # fmt: skip
"""Parts of the names of what turns pictures and sound into a text model's input."""

PREDICTORS = {"mtp"}
"""Parts of the names of heads that predict more tokens at once, which transformers does not load."""

_STACKED = (".input_linear.weight", ".output_linear.weight")
"""Ends of the names of tensors that hold all experts of Granite's and JetMoe's mixtures."""

_FLOATS = ("BF16", "F16", "F32", "F64")

_BLOCK = re.compile(r"(?:[A-Za-z_]\w*\.)+(\d{1,9})\.")
"""The name of a tensor in a block, which is one of a numbered list."""

TRANSPOSED = ("gpt2", "gpt-sw3", "openai-gpt")
"""Model types that keep the weights of their linear layers as [in, out]; quantized ones are kept as [out, in]."""


def is_linear(tensor: Tensor) -> bool:
    """Return whether a tensor is the weight of a linear layer that is worked on."""
    return _multiplies(tensor) and not _stays(tensor)


def is_expert(tensor: Tensor) -> bool:
    """Return whether a tensor is a matrix of a mixture's experts, or all of them in one."""
    stacked = len(tensor.shape) == 3 and tensor.name.endswith(_STACKED)
    named = ".experts." in tensor.name and not tensor.name.endswith("bias")
    return (named or stacked) and len(tensor.shape) > 1 and tensor.dtype in _FLOATS


def is_beside(name: str) -> bool:
    """Return whether a name is that of a tensor beside the text tower: of pictures, sound, or further tokens."""
    return not (TOWERS | PREDICTORS).isdisjoint(name.split("."))


def kept(tensors: Iterable[Tensor]) -> tuple[str, ...]:
    """Return the names of what readers must know that it is not quantized, beside output heads and experts.

    A tower is named as a whole, a slim layer by the ends of its names: with it, as transformers, vLLM and GPTQModel
    each read such a list, no other layer is named.
    """
    found: dict[str, None] = {}
    for tensor in tensors:
        parts = tensor.name.removesuffix(".weight").split(".")
        root = next((i for i, part in enumerate(parts) if part in TOWERS | PREDICTORS), None)
        if root is not None:
            bare = ".".join(parts[: root + 1]).removeprefix("model.")
            found |= dict.fromkeys((bare, f"model.{bare}"))  # older checkpoints leave out the name of the inner model
        elif _multiplies(tensor) and parts[-1] in _SLIM:
            found[".".join(parts[-2:])] = None
    return tuple(found)


def block_of(name: str) -> int:
    """Return the number of the block of the text tower that a tensor is in; -1 where it is in none."""
    found = _BLOCK.match(name)
    return int(found[1]) if found and not is_beside(name) else -1


def input_embeddings(tensors: Iterable[Tensor]) -> Tensor | None:
    """Return the tensor that turns tokens into numbers, [tokens, width], if it is there."""
    return _outside(tensors, _EMBEDDINGS)


def output_head(tensors: Iterable[Tensor]) -> Tensor | None:
    """Return the tensor that scores tokens, [tokens, width], if it is there; a tied one need not be."""
    return _outside(tensors, HEADS)


def _multiplies(tensor: Tensor) -> bool:
    """Return whether a tensor is a linear layer's weight."""
    name = tensor.name.removesuffix(".weight")
    last = name.removesuffix(".layer").rsplit(".", 1)[-1]  # a router of Granite's is called router.layer
    # transformers keeps the experts of a mixture in one three-dimensional tensor, and calls none of them linear
    if tensor.dtype not in _FLOATS or is_expert(tensor):
        return False
    return len(tensor.shape) == 2 and name != tensor.name and last not in _NOT_LINEAR


def _stays(tensor: Tensor) -> bool:
    """Return whether a linear layer is left as it is."""
    return is_beside(tensor.name) or tensor.name.split(".")[-2] in _SLIM


def _outside(tensors: Iterable[Tensor], last: set[str]) -> Tensor | None:
    found = [t for t in tensors if len(t.shape) == 2 and t.name.endswith(".weight") and _BLOCK.match(t.name) is None]
    found = [tensor for tensor in found if not is_beside(tensor.name)]
    return next((tensor for tensor in found if tensor.name.split(".")[-2] in last), None)
