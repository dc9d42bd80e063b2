"""What a model's config.json may say: no code, a known kind of model, numbers within reason.

Code that lies beside a type which transformers has itself is left behind, and so are the fields that name it.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from backend.errors import SpecError
from backend.model_folder import LEFT_BEHIND, MAX_JSON
from backend.models.families import QUANT_METHODS, SAME_AS, family, is_taken
from backend.models.native import defaults, is_native, is_native_tokenizer, text_types
from backend.strict_json import parse_object, quoted

_CODE_KEYS = re.compile(r"auto_map|custom_pipelines|custom_generate|trust_remote_code|_(attn|experts)_implementation.*")
_WRAPPER = "ForConditionalGeneration"
_HEADS = ("ForCausalLM", "LMHeadModel", _WRAPPER)

HIDDEN = ("hidden_size", "n_embd", "n_embed", "d_model")
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
VOCABULARY = ("vocab_size",)
CONTEXT = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

_RANGES: dict[str, int] = (
    dict.fromkeys(HIDDEN, 262_144)
    | dict.fromkeys(LAYERS, 2_000)
    | dict.fromkeys(VOCABULARY, 10_000_000)
    | dict.fromkeys(CONTEXT, 1_000_000_000)
    | dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_key_value_heads", "head_dim"), 16_384)
    | dict.fromkeys(("intermediate_size", "n_inner", "moe_intermediate_size", "ffn_dim"), 4_194_304)
    | dict.fromkeys((*EXPERTS, "num_experts_per_tok"), 16_384)
)


class Config(NamedTuple):
    """What the rest of the studio asks of a config."""

    architecture: str
    model_type: str
    text_type: str  # of the text model, which may be within one that reads pictures too
    layers: int
    hidden_size: int
    vocab_size: int
    context_length: int | None
    tied: bool  # whether the output head is the input embeddings, unless it lies in the weights too
    quantization: dict[str, Any] | None
    data: dict[str, Any]  # the whole of it


def check_config(data: dict[str, Any], name: str = "config.json") -> Config:
    """Check the config of a language model, or of one that wraps a language model to read pictures too.

    Raises:
        SpecError: Which field is at fault, and what to do.
    """
    model_type, own_code = data.get("model_type"), bool(data.get("auto_map"))
    if isinstance(model_type, str) and is_taken(model_type):
        data = without_code(data, name)
    refuse_code(data, name)
    if not isinstance(model_type, str):
        raise _fault(name, "has no model_type", "choose a model in transformers' format")
    if not is_taken(model_type):
        words = family(model_type, set(data)) or "a type that the installed transformers has no class for"
        raise _fault(name, f"says model_type {quoted(model_type)}, {words}", "choose a language model")
    fields = text_fields(data)
    _check_numbers(data, name)
    architecture = _architecture(data, name)
    if not is_native(model_type, architecture):
        if own_code:
            what = f"says architectures: {quoted(architecture)}, a class of the repo's own code, which never runs"
            raise _fault(name, what)
        if architecture.endswith(_WRAPPER):
            what = f"says architectures: {quoted(architecture)}, which is no class of model_type {quoted(model_type)}"
            raise _fault(name, what)
    return Config(
        architecture=architecture,
        model_type=model_type,
        text_type=text_type(data),
        layers=_first(fields, LAYERS) or len(fields.get("layers_block_type") or ()) or _needed(fields, LAYERS, name),
        hidden_size=_needed(fields, HIDDEN, name),
        vocab_size=_needed(fields, VOCABULARY, name),
        context_length=context_length(data),
        tied=is_tied(data),
        quantization=_quantization(data, name),
        data=data,
    )


def embedded(config: Mapping[str, Any]) -> int | None:
    """Return the tokens for which a model has embeddings, as its config says; None where it does not."""
    text = config.get("text_config")
    return _first({**config, **text} if isinstance(text, dict) else dict(config), VOCABULARY)


def without_code(said: Mapping[str, Any], name: str = "config.json") -> dict[str, Any]:
    """Return what a settings file says but for the fields that name code beside the model.

    A tokenizer's class that only such code has becomes the one that reads tokenizer.json.
    """
    kept = {key: value for key, value in said.items() if key not in LEFT_BEHIND}
    own = said.get("auto_map") and said.get("tokenizer_class") and not is_native_tokenizer(said["tokenizer_class"])
    if name.lower() == "tokenizer_config.json" and own:
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    return kept


def is_settings(name: str) -> bool:
    """Return whether a file of a model is one of those that may name code: config.json, tokenizer_config.json, …."""
    return name.lower().endswith("config.json")


def as_kept(name: str, raw: bytes) -> bytes:
    """Return a file's bytes as they are written here: a settings file without the fields that name code."""
    if not is_settings(name):
        return raw
    said = parse_object(raw, name, MAX_JSON)
    kept = without_code(said, name)
    return raw if kept == said else json.dumps(kept, indent=2, ensure_ascii=False).encode() + b"\n"


def leave_code_behind(path: Path) -> bytes:
    """Take what names code out of a file that is written here, and return what it holds then."""
    raw = path.read_bytes()
    kept = as_kept(path.name, raw)
    if kept != raw:
        path.write_bytes(kept)
    return kept


def context_length(config: Mapping[str, Any]) -> int | None:
    """Return the tokens that a model reads at most; None where its config does not say, or there is no such number.

    Rotary positions that are stretched reach as many times further; a sliding window bounds a layer, not the model.
    """
    fields = text_fields(config)
    said = _first({name: fields.get(name) or None for name in CONTEXT}, CONTEXT)
    rope = fields.get("rope_scaling") or fields.get("rope_parameters")
    if said is None or not isinstance(rope, dict) or "gemma3" in str(fields.get("model_type")):
        return said  # Gemma 3 says what it reads once stretched
    factor, before = rope.get("factor"), rope.get("original_max_position_embeddings", said)
    stretched = rope.get("rope_type", rope.get("type")) in ("linear", "dynamic", "yarn")
    if not stretched or not isinstance(factor, int | float) or not isinstance(before, int):
        return said
    return max(said, int(min(factor, _RANGES[CONTEXT[0]]) * before))


def longest_window(config: Mapping[str, Any], asked: int) -> int:
    """Return the tokens of a window of text: as many as are asked for, if the model reads so many."""
    return min(asked, context_length(config) or asked)


def is_tied(config: Mapping[str, Any]) -> bool:
    """Return whether a config says that the output head is the input embeddings, as its model type does by default.

    A head that lies in the weights all the same, with other numbers, was trained apart: transformers keeps it.
    """
    wrapped, text = reads_pictures(config), config.get("text_config")
    nested = text.get("tie_word_embeddings") if isinstance(text, dict) and not wrapped else None
    for said in (config.get("tie_word_embeddings"), nested):
        if isinstance(said, bool):
            return said
    model_type = str(config.get("model_type")) if wrapped else text_type(config)
    return bool(defaults(SAME_AS.get(model_type, model_type)).get("tie_word_embeddings"))


def reads_pictures(config: Mapping[str, Any]) -> bool:
    """Return whether a config is that of a model that wraps a language model to read pictures or sound too."""
    names = config.get("architectures") or [""]
    return str(names[0]).endswith(_WRAPPER)


def auto_class_name(config: Mapping[str, Any]) -> str:
    """Name the class of transformers that builds a model whole: with what reads pictures, where it has that."""
    text = not reads_pictures(config) and config.get("model_type") in text_types()
    return "AutoModelForCausalLM" if text else "AutoModelForImageTextToText"


def experts(config: Mapping[str, Any]) -> int:
    """Return how many experts a mixture has in a block; 0 where a model is none."""
    fields = text_fields(config)
    return max(fields[name] if type(fields.get(name)) is int else 0 for name in EXPERTS)


def quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return how a config says that its model's weights are quantized; empty where it does not."""
    settings = config.get("quantization_config")
    return settings if isinstance(settings, Mapping) else {}


def text_type(config: Mapping[str, Any]) -> str:
    """Return the model type of a config's text model: what it nests, or the model itself."""
    model_type, text = str(config.get("model_type")), config.get("text_config")
    if not isinstance(text, dict):
        return model_type
    return str(text.get("model_type") or defaults(model_type).get("text_config", {}).get("model_type") or model_type)


def text_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a config, those of the text model that it nests among them, with their defaults."""
    text = config.get("text_config")
    return {**defaults(text_type(config)), **config, **text} if isinstance(text, dict) else dict(config)


def refuse_code(data: Any, name: str, at: str = "") -> None:
    """Refuse any field, however deep, that makes a library load code: from the repo or from another one."""
    if isinstance(data, list):
        for i, child in enumerate(data):
            refuse_code(child, name, f"{at}[{i}]")
    if not isinstance(data, dict):
        return
    for key, value in data.items():
        field = f"{at}.{key}".lstrip(".")
        # `_attn_implementation_autoset: true` and the like name no code
        if (
            _CODE_KEYS.fullmatch(key)
            and value not in (None, False, {}, [], "")
            and not (key.startswith("_") and value is True)
        ):
            raise _fault(name, f"has the field {quoted(field)}, which makes libraries run code from a repo")
        if key == "attn_implementation" and "/" in str(value):
            raise _fault(name, f"has {quoted(value)} in {quoted(field)}, which is code of another repo")
        refuse_code(value, name, field)


def _architecture(data: dict[str, Any], name: str) -> str:
    names = data.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise _fault(name, "lists no architectures", "add the class, such as LlamaForCausalLM, or choose another model")
    if re.fullmatch(r"[A-Za-z0-9_]{1,100}", names[0]) and names[0].endswith(_HEADS):
        return str(names[0])
    remedy = "choose a model that writes text"
    raise _fault(name, f"says architectures: {quoted(names[0])}, which writes no text", remedy)


def _check_numbers(data: dict[str, Any], name: str, at: str = "") -> None:
    for key, value in data.items():
        if isinstance(value, dict):
            _check_numbers(value, name, f"{at}{key}.")
        low = int(key in (*HIDDEN, *LAYERS, *VOCABULARY))  # others may be 0: no experts, a layer without attention
        for number in value if isinstance(value, list) else [value]:  # a list has one a layer
            if key in _RANGES and number is not None and not (type(number) is int and low <= number <= _RANGES[key]):
                raise _fault(
                    name, f"says {at}{key} = {quoted(number, 30)}; it is a whole number from {low} to {_RANGES[key]}"
                )


def _first(data: dict[str, Any], names: tuple[str, ...]) -> int | None:
    return next((data[n] for n in names if type(data.get(n)) is int), None)


def _needed(data: dict[str, Any], names: tuple[str, ...], name: str) -> int:
    value = _first(data, names)
    if value is None:
        raise _fault(name, f"lacks {names[0]}")
    return value


def _quantization(data: dict[str, Any], name: str) -> dict[str, Any] | None:
    found = data.get("quantization_config")
    if found is None:
        return None
    if not isinstance(found, dict):
        raise _fault(name, "has a quantization_config that is no object")
    method = found.get("quant_method")
    if method is None and (found.get("load_in_4bit") or found.get("load_in_8bit")):
        method = "bitsandbytes"  # before transformers 4.30 it did not say
    if not isinstance(method, str) or method not in QUANT_METHODS:
        raise _fault(name, f"says quantization_config.quant_method {quoted(method)}, which is not known here")
    return {**found, "quant_method": method}


def _fault(name: str, what: str, remedy: str = "choose another model") -> SpecError:
    return SpecError(f"{quoted(name)} {what}: {remedy}.")
