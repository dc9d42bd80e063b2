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
    "gate", "router", "o_a_proj", "wo_a",
}  # fmt: skip
"""Last part of the names of two-dimensional weights that are no linear layer, or the output head."""

_SLIM = {
    "in_proj_a", "in_proj_b", "in_proj_ba", "a_proj", "b_proj", "igate_preact", "fgate_preact", "sink_proj",
    "shared_expert_gate", "weights_proj", "modality_router", "correction_coefs", "prediction_coefs",
    "block_inject_weight",
}  # fmt: skip
"""Last part of the names of linear layers with a handful of outputs, a head or an expert each, that steer the rest."""

_STEERING = {"router", "compressor"}
"""Parts of the names of what chooses experts, or the text that a layer attends to."""

TOWERS = {
    "visual", "vision_tower", "vision_model", "high_res_vision_model", "vision_encoder", "vision_adapter",
    "vision_projection", "vision_embed_tokens", "vision_tokenizer", "visual_embeddings_table", "embed_vision",
    "vision_embedder",
    "audio_tower", "embed_audio", "multi_modal_projector", "mm_projector", "projector", "aligner", "connector",
    "merger", "resampler_model", "embed_tokens_extend",
}  # fmt: skip
"""Parts of the names of what turns pictures and sound into a text model's input."""

_SAME = {"vision_embedder": ("vision_embedder", "embed_vision")}
"""Towers that a class of transformers calls otherwise than its checkpoints do."""

PREDICTORS = {"mtp", "mtp_layers", "mtp_dspark"}
"""Parts of the names of heads that predict more tokens at once, which transformers does not load."""

_AHEAD = {"eh_proj", "enorm", "hnorm", "shared_head"}
"""Parts of the names that only such a head has where it is one more block, as of DeepSeek V3 and GLM-4.6."""

_STACKED = (".input_linear.weight", ".output_linear.weight")
"""Ends of the names of tensors that hold all experts of Granite's and JetMoe's mixtures."""

_FLOATS = ("BF16", "F16", "F32", "F64")

_BLOCK = re.compile(r"(?:(?!altup_)[A-Za-z_]\w*\.)+(\d{1,9})\.")
"""The name of a tensor in a block, which is one of a numbered list; Gemma 3n has two more, of projections."""

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


def kept_exact(tensors: Iterable[Tensor]) -> frozenset[str]:
    """Return the names of what a model in 16 bit keeps in float32 on purpose: scores of routers, some norms, decays."""
    there = list(tensors)
    narrow = any(tensor.dtype in ("BF16", "F16") and is_linear(tensor) for tensor in there)
    return frozenset(t.name for t in there if narrow and t.dtype == "F32" and not _is_large(t))


def is_beside(name: str) -> bool:
    """Return whether a name is that of a tensor beside the text tower: of pictures, sound, or further tokens."""
    return not (TOWERS | PREDICTORS).isdisjoint(name.split("."))


def ahead(tensors: Iterable[Tensor]) -> dict[str, str]:
    """Return the tensors of the blocks that predict more tokens at once, each with how its block's names begin."""
    blocks = {t.name: found[0] for t in tensors if (found := _BLOCK.match(t.name)) and not is_beside(t.name)}
    heads = {block for name, block in blocks.items() if not _AHEAD.isdisjoint(name.split("."))}
    return {name: block for name, block in blocks.items() if block in heads}


def kept(tensors: Iterable[Tensor]) -> tuple[str, ...]:
    """Return the names of what readers must know that it is not quantized, beside output heads and experts.

    A tower is named as a whole, a slim layer by the ends of its names: with it, as transformers, vLLM and GPTQModel
    each read such a list, no other layer is named.
    """
    there = list(tensors)
    found = dict.fromkeys(ahead(there).values())
    for tensor in there:
        parts = tensor.name.removesuffix(".weight").split(".")
        root = next((i for i, part in enumerate(parts) if part in TOWERS | PREDICTORS), None)
        if root is not None:
            bare = ".".join(parts[: root + 1]).removeprefix("model.")
            # older checkpoints leave out the name of the inner model, or call a tower otherwise than the class does
            found |= dict.fromkeys(f"{inner}{name}" for name in _SAME.get(bare, (bare,)) for inner in ("", "model."))
        elif _is_matrix(tensor) and _stays(tensor):
            found[".".join(parts[-2:])] = None
    return tuple(found)


def block_of(name: str) -> int:
    """Return the number of the block of the text tower that a tensor is in; -1 where it is in none."""
    found = _BLOCK.match(name)
    return int(found[1]) if found and not is_beside(name) else -1


def inside(name: str) -> str:
    """Return a tensor's name from its block's number on, if it is in a block of the text tower; else all of it.

    What stands before it differs between classes of the same model, and between their versions.
    """
    found = _BLOCK.match(name)
    return name[found.start(1) :] if found and not is_beside(name) else name


def input_embeddings(tensors: Iterable[Tensor]) -> Tensor | None:
    """Return the tensor that turns tokens into numbers, [tokens, width], if it is there."""
    return _outside(tensors, _EMBEDDINGS)


def output_head(tensors: Iterable[Tensor]) -> Tensor | None:
    """Return the tensor that scores tokens, [tokens, width], if it is there; a tied one need not be."""
    return _outside(tensors, HEADS)


def _is_matrix(tensor: Tensor) -> bool:
    """Return whether a tensor is what most linear layers' weights are: a matrix, though not of an expert."""
    # transformers keeps the experts of a mixture in one three-dimensional tensor, and calls none of them linear
    named = len(tensor.shape) == 2 and tensor.name.endswith(".weight")
    return named and tensor.dtype in _FLOATS and not is_expert(tensor)


def _multiplies(tensor: Tensor) -> bool:
    """Return whether a tensor is a linear layer's weight."""
    return _is_matrix(tensor) and tensor.name.split(".")[-2] not in _NOT_LINEAR


def _is_large(tensor: Tensor) -> bool:
    """Return whether a tensor is a matrix of a layer, of experts, or of embeddings."""
    parts = tensor.name.removesuffix(".weight").split(".")
    layer = _multiplies(tensor) and _STEERING.isdisjoint(parts)
    return layer or is_expert(tensor) or parts[-1] in _EMBEDDINGS | HEADS


def _stays(tensor: Tensor) -> bool:
    """Return whether a linear layer is left as it is."""
    parts = tensor.name.split(".")
    return is_beside(tensor.name) or parts[-2] in _SLIM or not _STEERING.isdisjoint(parts)


def _outside(tensors: Iterable[Tensor], last: set[str]) -> Tensor | None:
    found = [t for t in tensors if len(t.shape) == 2 and t.name.endswith(".weight") and _BLOCK.match(t.name) is None]
    found = [tensor for tensor in found if not is_beside(tensor.name)]
    return next((tensor for tensor in found if tensor.name.split(".")[-2] in last), None)
