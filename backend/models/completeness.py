"""Whether weights hold what their config speaks of, from headers alone: transformers makes up what is missing.

Of the model types in BLOCKS each matrix is known by name and shape. Of all others: the embeddings, the output head, as
many blocks and experts as the config says, no block that lacks something which another of its kind has, and no matrix
between numbers that the config does not name.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from backend.errors import SpecError
from backend.models.config import Config, experts, text_fields
from backend.strict_json import quoted
from backend.weights.anatomy import block_of, input_embeddings, is_expert, output_head
from backend.weights.tensor import Tensor

Size = int | None  # None: the config does not say, so that nothing is compared

_EXPERT = re.compile(r"(.*\bexperts\.)(\d{1,9})(\..*)")
_UNEVEN = frozenset(
    ("gemma3n_text", "gemma4_text", "gpt_neox_japanese", "modernbert-decoder", "rwkv", "zamba", "zamba2", "zaya")
)
"""Model types of which some blocks use what lies in others, or have less than those."""

_ROUNDED = ("lfm2", "lfm2_moe", "lfm3")
"""Model types whose feed-forward is as wide as a rule makes of the config."""

_MATRIX = re.compile(
    r"(.*\.)?((mlp|feed_forward|ffn)\.(?P<feed>gate_proj|up_proj|down_proj|fc1|fc2|w1|w2|w3|c_fc|fc_in|fc_out)"
    r"|(self_attn|attn|attention)\.([qkvo]_proj|out_proj))\.weight"
)

_BUFFER = re.compile(r"(.*\.)?(rotary_emb\..*|inv_freq|masked_bias|attn\.bias|attention\.bias)")
"""What older versions saved and no model reads any more, of some blocks or all."""

_WRAPPED = re.compile(
    r"(module|base_model)\..*"
    r"|(.*\.)?(_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_layer|lora_[AB])\..*"
)
"""Names of tensors that were saved with what lay around the model: several processes, torch.compile(), PEFT."""

_KINDS = 16
"""Different contents that blocks are compared with at most: hybrids have two or three."""

_ATTENTION = {"self_attn.q_proj": "QH", "self_attn.k_proj": "KH", "self_attn.v_proj": "KH", "self_attn.o_proj": "HQ"}
_GATED = {"mlp.gate_proj": "FH", "mlp.up_proj": "FH", "mlp.down_proj": "HF"}
_NORMS = {"input_layernorm": "H", "post_attention_layernorm": "H"}
_MORE_NORMS = {"pre_feedforward_layernorm": "H", "post_feedforward_layernorm": "H"}
_HEAD_NORMS = {"self_attn.q_norm": "D", "self_attn.k_norm": "D"}
_LLAMA = _ATTENTION | _GATED | _NORMS

BLOCKS: dict[str, dict[str, str]] = {
    **dict.fromkeys(("llama", "mistral", "granite", "smollm3", "gemma", "qwen2"), _LLAMA),
    "qwen3": _LLAMA | _HEAD_NORMS,
    "gemma2": _LLAMA | _MORE_NORMS,
    "gemma3_text": _LLAMA | _MORE_NORMS | _HEAD_NORMS,
    "olmo2": _ATTENTION | _GATED
    | {"post_attention_layernorm": "H", "post_feedforward_layernorm": "H", "self_attn.q_norm": "Q"}
    | {"self_attn.k_norm": "K"},
    "mixtral": _ATTENTION | _NORMS,
    "qwen3_moe": _ATTENTION | _NORMS | _HEAD_NORMS,
    "phi3": _NORMS | {"self_attn.qkv_proj": "AH", "self_attn.o_proj": "HQ", "mlp.gate_up_proj": "GH"}
    | {"mlp.down_proj": "HF"},
    "phi": {"input_layernorm": "H", "self_attn.q_proj": "QH", "self_attn.k_proj": "KH", "self_attn.v_proj": "KH"}
    | {"self_attn.dense": "HQ", "mlp.fc1": "FH", "mlp.fc2": "HF"},
    "opt": {"self_attn.q_proj": "HH", "self_attn.k_proj": "HH", "self_attn.v_proj": "HH", "self_attn.out_proj": "HH"}
    | {"fc1": "FH", "fc2": "HF", "self_attn_layer_norm": "H", "final_layer_norm": "H"},
    "gpt2": {"ln_1": "H", "attn.c_attn": "HT", "attn.c_proj": "HH", "ln_2": "H", "mlp.c_fc": "HF", "mlp.c_proj": "FH"},
    "gpt_neox": _NORMS | {"attention.query_key_value": "TH", "attention.dense": "HH", "mlp.dense_h_to_4h": "FH"}
    | {"mlp.dense_4h_to_h": "HF"},
    "bloom": _NORMS | {"self_attention.query_key_value": "TH", "self_attention.dense": "HH", "mlp.dense_h_to_4h": "FH"}
    | {"mlp.dense_4h_to_h": "HF"},
}  # fmt: skip
"""What each block of a model type has, by the module's name, and the shape of its weight in the letters of _sizes()."""

_LAST_NORM = {"gpt2": "ln_f", "bloom": "ln_f", "gpt_neox": "final_layer_norm", "phi": "final_layernorm"}
"""The norm behind the blocks, where it is called otherwise than `norm`; that of OPT is not always there."""


def check_complete(config: Config, tensors: Sequence[Tensor]) -> None:
    """Refuse weights that lack what the config speaks of.

    Args:
        config: From check_config().
        tensors: Of all weight files.

    Raises:
        SpecError: What is missing, or has another shape than the config says.
    """
    packed = config.quantization is not None
    if wrapped := next((tensor.name for tensor in tensors if _WRAPPED.fullmatch(tensor.name)), None):
        raise SpecError(
            f"{quoted(wrapped)} is a name that something around the model gave, and transformers would put random"
            " numbers in the place of what it has: save the model itself, or choose another."
        )
    _check_embeddings(config, tensors, packed)
    blocks = _blocks(config, tensors)
    if absent := set(range(config.layers)) - blocks.keys():
        raise SpecError(
            f"'config.json' says that the model has {config.layers} layers, and layer {min(absent)} is missing in the"
            f" weights, which hold {len(blocks)}: choose a complete model."
        )
    inside = {i: blocks[i] for i in range(config.layers)}
    _check_experts(config, inside)
    known = BLOCKS.get(config.text_type)
    if known is not None:
        _check_known(config, known, inside, tensors, packed)
    elif not packed and config.text_type not in (*_UNEVEN, *_ROUNDED):
        _check_plausible(config, inside)
    if config.text_type not in _UNEVEN:
        _check_even(config, inside, packed)


def _check_embeddings(config: Config, tensors: Sequence[Tensor], packed: bool) -> None:
    embeddings, head = input_embeddings(tensors), output_head(tensors)
    if embeddings is None and (head is None or not config.tied):
        raise _missing("the tensor of the input embeddings")
    if head is None and not config.tied and not any("lm_head." in tensor.name for tensor in tensors):
        raise SpecError(
            "The output head is missing in the weights, and 'config.json' does not say that it is the input"
            " embeddings: choose a complete model, or set tie_word_embeddings to true there if it is."
        )
    narrow = text_fields(config.data).get("word_embed_proj_dim", config.hidden_size)
    for tensor in (embeddings, head):
        if tensor and not packed and tensor.name.endswith(("embed_tokens.weight", "wte.weight", "lm_head.weight")):
            _check_shape(tensor, (config.vocab_size, narrow))


def _blocks(config: Config, tensors: Iterable[Tensor]) -> dict[int, dict[str, Tensor]]:
    """Return what each block holds, by its name within it: of several numbered lists the fullest long enough."""
    lists: dict[str, dict[int, dict[str, Tensor]]] = defaultdict(lambda: defaultdict(dict))
    for tensor in tensors:
        if (index := block_of(tensor.name)) >= 0 and not _BUFFER.fullmatch(tensor.name):
            path, _, inner = tensor.name.partition(f".{index}.")
            lists[path][index][inner] = tensor

    def fullness(blocks: dict[int, dict[str, Tensor]]) -> tuple[int, int]:
        return min(len(blocks), config.layers), sum(map(len, blocks.values()))

    return max(lists.values(), key=fullness, default={})


def _check_experts(config: Config, blocks: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Refuse a block with fewer experts than the config says, or with one that lacks what the others have."""
    count = _sizes(config)["E"]
    for index, inside in blocks.items():
        parts: dict[str, set[int]] = defaultdict(set)
        for name in inside:
            if found := _EXPERT.fullmatch(name):
                parts[found[1] + "{}" + found[3]].add(int(found[2]))
        wanted = set(range(count)) if count else set[int]().union(*parts.values())
        for name, numbers in parts.items():
            if absent := wanted - numbers:
                raise _missing(f"{quoted(name.replace('{}', str(min(absent)), 1))} of layer {index}")
        for name, tensor in inside.items():
            held = ".experts." in f".{name}" or is_expert(tensor)
            if count and held and len(tensor.shape) == 3 and tensor.shape[0] < count:
                raise _other_shape(tensor, f"{count} experts")


def _check_known(
    config: Config,
    known: Mapping[str, str],
    blocks: Mapping[int, Mapping[str, Tensor]],
    tensors: Sequence[Tensor],
    packed: bool,
) -> None:
    """Refuse a block that lacks a matrix of its model type, or has it in another shape than the config says."""
    sizes = _sizes(config)
    for index, inside in blocks.items():
        modules = {_module(name) for name in inside} if packed else set()
        for name, letters in known.items():
            tensor = inside.get(f"{name}.weight")
            if tensor is None and name not in modules:
                raise _missing(f"{quoted(name + '.weight')} of layer {index}")
            if tensor is not None and not packed:
                _check_shape(tensor, tuple(sizes[letter] for letter in letters))
    norm = _LAST_NORM.get(config.text_type, "norm")
    behind = any(f".{t.name}".endswith(f".{norm}.weight") for t in tensors if block_of(t.name) < 0)
    if not behind and config.text_type != "opt":
        raise _missing(f"the norm behind the layers, '{norm}.weight',")


def _check_plausible(config: Config, blocks: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Refuse a matrix that does not lead from or to the hidden size, or a feed-forward of a width that nobody named."""
    hidden, feed = config.hidden_size, _sizes(config)["F"]
    named = {hidden, 4 * hidden, *_numbers(config.data)}
    named |= {2 * number for number in named if number >= hidden}
    for inside in blocks.values():
        for name, tensor in inside.items():
            found = _MATRIX.fullmatch(name) if len(tensor.shape) == 2 and not is_expert(tensor) else None
            if found is None:
                continue
            unnamed = feed and found["feed"] and not named.issuperset(tensor.shape)
            if hidden not in tensor.shape or unnamed:
                raise _other_shape(
                    tensor, f"hidden_size = {hidden}" + (f", intermediate_size = {feed}" if feed else "")
                )


def _numbers(value: Any) -> Iterator[int]:
    """Yield every whole number in a config."""
    if isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _numbers(child)
    elif type(value) is int:
        yield value


def _check_even(config: Config, blocks: Mapping[int, Mapping[str, Tensor]], packed: bool) -> None:
    """Refuse a block that has some of what another of its kind has, and nothing else."""
    lists = [value for value in text_fields(config.data).values() if isinstance(value, list)]
    kinds = [value for value in lists if len(value) == len(blocks)]
    groups: dict[str, list[int]] = defaultdict(list)
    for index, inside in blocks.items():
        mixed = any(".experts." in f".{name}" for name in inside)
        groups[repr((mixed, [kind[index] for kind in kinds]))].append(index)
    for indices in groups.values():
        held = {i: frozenset(_module(n) for n in blocks[i]) if packed else frozenset(blocks[i]) for i in indices}
        contents = [names for names, _ in Counter(held.values()).most_common(_KINDS)]
        for index, names in held.items():
            if fuller := next((other for other in contents if names < other), None):
                raise _missing(f"{quoted(min(fuller - names))} of layer {index}")


def _module(name: str) -> str:
    """Return the module that a tensor belongs to, packed or not."""
    return name.partition(".weight")[0] if ".weight" in name else name.rpartition(".")[0]


def _sizes(config: Config) -> dict[str, Size]:
    """Return sizes by their letters: hidden, query, key and value, head, feed-forward, experts, and sums of them."""
    fields = text_fields(config.data)

    def said(*names: str) -> Size:
        return next((fields[name] for name in names if type(fields.get(name)) is int and fields[name] > 0), None)

    hidden, heads = config.hidden_size, said("num_attention_heads", "n_head")
    by_default = hidden // heads if heads and not config.text_type.startswith("gemma") else None
    head = said("head_dim") or by_default
    feed = said("intermediate_size", "ffn_dim", "n_inner")
    if feed is None and config.text_type in ("gpt2", "bloom"):
        feed = 4 * hidden
    groups = said("num_key_value_heads") or (heads if config.text_type in ("llama", "phi", "phi3") else None)
    query, key = (count * head if count and head else None for count in (heads, groups))
    return {
        "H": hidden, "Q": query, "K": key, "D": head, "F": feed, "T": 3 * hidden,
        "A": query + 2 * key if query and key else None, "G": 2 * feed if feed else None,
        "E": experts(config.data) or None,
    }  # fmt: skip


def _check_shape(tensor: Tensor, wanted: Iterable[Size]) -> None:
    sizes = tuple(wanted)
    if len(sizes) != len(tensor.shape) or any(w not in (None, s) for w, s in zip(sizes, tensor.shape, strict=True)):
        raise _other_shape(tensor, " × ".join(_told(sizes)))


def _told(sizes: Iterable[Size]) -> Iterator[str]:
    return (str(size) if size else "any" for size in sizes)


def _other_shape(tensor: Tensor, wanted: Any) -> SpecError:
    return SpecError(
        f"{quoted(tensor.name)} has {' × '.join(_told(tensor.shape))} numbers, and 'config.json' speaks of {wanted}:"
        " choose a complete model, with the config that belongs to it."
    )


def _missing(what: str) -> SpecError:
    return SpecError(
        f"{what[0].upper()}{what[1:]} is missing in the weights, and would be filled with random numbers: choose a"
        " complete model."
    )
