"""A LoRA adapter as PEFT saves it: what its settings mean for each layer, and where its tensors lie; no torch, no peft.

Format: adapter_config.json and adapter_model.safetensors of PEFT 0.4 to 0.21 (LoRA, arXiv 2106.09685; DoRA, arXiv
2402.09353; rank-stabilized scaling, arXiv 2312.03732). What PEFT could merge only by running its own code is refused.
"""

import math
import re
from functools import partial
from typing import Any, NamedTuple

from backend.artifacts.artifact import MANIFEST
from backend.errors import SpecError
from backend.hub.files import Files
from backend.merge.experts import is_parameter, is_target, parameter_of
from backend.strict_json import parse_object, quoted
from backend.weights.floats import FLOATS
from backend.weights.header import Header, header_from
from backend.weights.tensor import Tensor

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"

QUANTIZATION = ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
"""What artifact.json records of the base that an adapter was trained on, under these names of BitsAndBytesConfig."""

_MAX_JSON = 5_000_000  # bytes; rank_pattern may name every layer


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_HARMLESS = _words(
    """
    alpha_pattern auto_mapping base_model_name_or_path bias corda_config ensure_weight_tying eva_config exclude_modules
    fan_in_fan_out inference_mode init_lora_weights layers_pattern layers_to_transform loftq_config lora_alpha
    lora_dropout lora_ga_config megatron_core modules_to_save peft_type peft_version qalora_group_size r rank_pattern
    revision runtime_config target_modules target_parameters task_type trainable_token_indices use_dora use_rslora
    """
)
"""Fields that are read here, or that spoke of the training alone."""

_INITS = ("gaussian", "eva", "orthogonal", "mica", "true", "false")
"""Initializations that leave the base model's weights as they are."""

_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(\.default)?(?P<end>\.weight)?"
)
_SAVED = re.compile(r"(?P<module>.+?)(\.base_layer|\.modules_to_save(\.default)?)?\.(?P<end>weight|bias)")
_ROWS = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta(\.default)?")
_PATTERN = re.compile(r"[\w.\\^$|()\[\],-]*(?:(?<!\))[*+][\w.\\^$|()\[\],-]*){0,3}", re.ASCII)

MAX_PATTERNS = 5000  # PEFT writes one a layer at most


class Lora(NamedTuple):
    """What an adapter adds to one layer: scale · B @ A, and with DoRA the length of each of its rows."""

    a: Tensor
    b: Tensor
    magnitude: Tensor | None
    scale: float
    embedding: bool  # A is [rank, tokens], B [width, rank]
    experts: int = 1  # that A and B hold, see backend.merge.experts
    part: tuple[int, int, int] = (0, 0, 0)  # of several: which one, its first row and the one after its last

    @property
    def rank(self) -> int:
        """The inner dimension."""
        return self.a.shape[0] // self.experts

    @property
    def outputs(self) -> int:
        """Rows of what is added."""
        return self.b.shape[0] if self.experts == 1 else self.part[2] - self.part[1]


class Rows(NamedTuple):
    """Tokens whose rows take the place of the base model's."""

    tensor: Tensor  # [tokens, width]
    tokens: tuple[int, ...]


class Adapter(NamedTuple):
    """What an adapter says, from its settings and its header alone."""

    name: str
    base_model: str | None  # as its author wrote it: a Hub id, or a path of another machine
    on_folder: bool  # whether it was tuned on a folder of its author's, whose bare name stands there
    header: Header
    loras: dict[str, Lora]  # by the name of the layer in the base model
    saved: dict[str, Tensor]  # by the name of the tensor in the base model that it takes the place of
    rows: dict[str, Rows]  # by the name of the embedding, or of the output head
    own: frozenset[str]  # those of `saved` that were trained apart from a tensor that they were tied to
    ties: bool  # whether what changes the input embeddings changes a tied output head too
    quantization: dict[str, Any]  # what artifact.json records of QUANTIZATION


def read_adapter(files: Files, name: str) -> Adapter:
    """Read an adapter's settings and header, wherever it lies.

    Args:
        files: Of the adapter.
        name: What errors call it: its Hub id, or its folder.

    Raises:
        SpecError: The file, the field and what to do.
    """
    entries = {entry.name: entry for entry in files.entries()}
    where = f"of the adapter {quoted(name)}"
    if CONFIG not in entries:
        raise SpecError(f"{quoted(name)} is no adapter: it has no {CONFIG}. Choose an adapter that PEFT saved.")
    if WEIGHTS not in entries:
        what = "has pickled weights, which can run code when they are opened" if PICKLE in entries else "has no weights"
        raise SpecError(f"The adapter {quoted(name)} {what}: save it again with PEFT, which writes {WEIGHTS}.")
    config = _json(files, CONFIG, entries[CONFIG].size)
    _check(config, where)
    header = header_from(partial(files.read, WEIGHTS), entries[WEIGHTS].size, WEIGHTS)
    recorded: dict[str, Any] = {}
    on_folder = False
    if MANIFEST in entries:
        manifest = _json(files, MANIFEST, entries[MANIFEST].size)
        found = manifest.get("options")
        recorded = {key: found[key] for key in QUANTIZATION if key in found} if isinstance(found, dict) else {}
        on_folder = manifest.get("stage") == "finetune" and manifest.get("base_model") is None
    return _sorted(name, config, header, recorded)._replace(on_folder=on_folder)


def _json(files: Files, file: str, size: int) -> dict[str, Any]:
    return parse_object(files.read(file, 0, min(size, _MAX_JSON + 1)), file, _MAX_JSON)


def _check(config: dict[str, Any], where: str) -> None:
    """Refuse settings that mean something else than adding B @ A."""

    def fault(field: str, why: str, remedy: str) -> SpecError:
        return SpecError(f"'{CONFIG}' {where} says {field} = {quoted(config.get(field))}, {why}: {remedy}.")

    merge = "merge it with PEFT, and choose the merged model"
    if config.get("peft_type") != "LORA":
        raise fault("peft_type", "which is no LoRA", "choose a LoRA adapter, or " + merge)
    if str(config.get("init_lora_weights", True)).lower() not in _INITS:
        retrain = "convert it with PEFT's path_initial_model_for_weight_conversion"
        raise fault("init_lora_weights", "which changed the base model's weights before the training", retrain)
    for field, value in config.items():
        if field not in _HARMLESS and value not in (None, False, [], {}, ""):
            raise fault(field, "which cannot be merged here", merge)
    if config.get("bias", "none") not in ("none", "all", "lora_only"):
        raise fault("bias", "which PEFT does not know", "repair the file")
    parameters = config.get("target_parameters") or []
    if not isinstance(parameters, list) or not all(map(is_target, parameters)):
        raise fault("target_parameters", "which are neither weights of layers nor a mixture's experts", merge)
    for field in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(field) or {}
        if not isinstance(patterns, dict) or not all(_is_number(value) for value in patterns.values()):
            raise fault(field, "which does not give a number for each pattern", "repair the file")
        if strange := next((p for p in patterns if len(p) > 300 or not _PATTERN.fullmatch(p)), None):
            raise SpecError(
                f"'{CONFIG}' {where} has the pattern {quoted(strange)} in {field}, which could take forever to match:"
                " write the names of the layers instead."
            )
    if not (_is_number(config.get("r", 8)) and _is_number(config.get("lora_alpha", 8)) and config.get("r", 8) > 0):
        raise fault(
            "r", f"with lora_alpha = {quoted(config.get('lora_alpha'))}, which give no scale", "repair the file"
        )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _sorted(name: str, config: dict[str, Any], header: Header, recorded: dict[str, Any]) -> Adapter:
    """Sort the tensors of an adapter by the layer that they change."""
    parts: dict[str, dict[str, Tensor]] = {}
    saved: dict[str, Tensor] = {}
    rows: dict[str, Rows] = {}
    targets = config.get("target_parameters") or ()
    own: set[str] = set()
    wrapped = {str(module) for module in config.get("modules_to_save") or ()}
    for tensor in header.tensors:
        key = tensor.name.removeprefix("base_model.model.")
        if tensor.dtype not in FLOATS:
            raise _fault(name, f"holds {quoted(tensor.name)} as {tensor.dtype}, which are no floating-point numbers")
        if (found := _PART.fullmatch(key)) is not None:
            module = parameter_of(found["module"], targets) or found["module"].removesuffix(".base_layer")
            parts.setdefault(module, {})[found["part"]] = tensor
        elif (found := _ROWS.fullmatch(key)) is not None:
            rows[f"{found['module']}.weight"] = _rows(name, config, found["module"], tensor)
        elif ".lora_" not in key and (found := _SAVED.fullmatch(key)) is not None:
            target = f"{found['module']}.{found['end']}"
            saved[target] = tensor
            if any(found["module"] == module or found["module"].endswith(f".{module}") for module in wrapped):
                own.add(target)
        else:
            raise _fault(name, f"holds {quoted(tensor.name)}, which no LoRA has")
    if not parts and not saved and not rows:
        raise _fault(name, "holds no tensors")
    patterns = {field: _patterns(config.get(field) or {}) for field in ("rank_pattern", "alpha_pattern")}
    settings = config | patterns
    loras = {module: _lora(name, settings, module, found) for module, found in parts.items()}
    base, ties = config.get("base_model_name_or_path"), _ties(config, header)
    base = base if isinstance(base, str) and base else None
    apart = frozenset() if ties else frozenset(own)
    return Adapter(name, base, False, header, loras, saved, rows, apart, ties, recorded)


def _ties(config: dict[str, Any], header: Header) -> bool:
    """Return whether PEFT kept embeddings and head one: asked to, it does where they have the names that it knows."""
    known = any(
        f".{module}." in f".{tensor.name}" for tensor in header.tensors for module in ("embed_tokens", "lm_head")
    )
    return bool(config.get("ensure_weight_tying")) and known


def _rows(name: str, config: dict[str, Any], module: str, tensor: Tensor) -> Rows:
    """Find which tokens the rows are of: a list is of the input embeddings, a dict names its layers."""
    said = config.get("trainable_token_indices")
    if isinstance(said, dict):
        said = next((tokens for layer, tokens in said.items() if f".{module}".endswith(f".{layer}")), None)
    tokens = tuple(said) if isinstance(said, list) else ()
    numbers = all(type(token) is int and token >= 0 for token in tokens)
    if not numbers or len(tensor.shape) != 2 or len(tokens) != tensor.shape[0]:
        raise _fault(name, f"holds rows of tokens of {quoted(module)} which trainable_token_indices does not number")
    return Rows(tensor, tokens)


def _lora(name: str, config: dict[str, Any], module: str, parts: dict[str, Tensor]) -> Lora:
    """Put together what changes one layer, and compare it with the settings."""
    embedding = any(part.startswith("lora_embedding") for part in parts)
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    for part in names:
        if part not in parts:
            raise _fault(name, f"lacks {part} of {quoted(module)}")
    a = parts[names[0]]
    b = parts[names[1]]
    magnitude = parts.get("lora_magnitude_vector")
    rank = _first(config["rank_pattern"], module, config.get("r", 8))
    alpha = _first(config["alpha_pattern"], module, config.get("lora_alpha", 8))
    if len(a.shape) != 2 or len(b.shape) != 2 or not a.elements or not b.elements:
        raise _fault(name, f"holds for {quoted(module)} matrices of the shapes {list(a.shape)} and {list(b.shape)}")
    stacked = is_parameter(module) and type(rank) is int and rank > 0
    experts = max(a.shape[0] // rank, 1) if stacked else 1
    if not a.shape[0] == b.shape[1] == rank * experts:
        raise _fault(
            name,
            f"holds for {quoted(module)} matrices of the ranks {a.shape[0]} and {b.shape[1]}, and {CONFIG} says {rank}",
        )
    if bool(magnitude) != bool(config.get("use_dora")):
        verb = "holds" if magnitude else "lacks"
        raise _fault(name, f"{verb} a lora_magnitude_vector of {quoted(module)}, unlike use_dora in {CONFIG}")
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return Lora(a, b, magnitude, scale, embedding, experts)


class _Linear:
    """A pattern of a stranger's, matched by RE2, whose time grows with the name's length and no faster."""

    def __init__(self, pattern: str) -> None:
        self._pattern = f"^{pattern}"
        self.match("")

    def match(self, name: str) -> bool:
        """Return whether a name is of this pattern."""
        import pyarrow as pa
        import pyarrow.compute as pc

        try:
            return bool(pc.match_substring_regex(pa.scalar(name), self._pattern).as_py())
        except pa.ArrowInvalid as e:
            raise re.error(" ".join(str(e).split())[:120], self._pattern) from e


Pattern = re.Pattern[str] | _Linear


def _patterns(given: dict[str, Any]) -> list[tuple[Pattern, Any]]:
    """Compile patterns as PEFT's get_pattern_key() reads them: each matches the end of a layer's name."""
    if len(given) > MAX_PATTERNS:
        raise SpecError(f"'{CONFIG}' has more than {MAX_PATTERNS} patterns: choose another adapter.")
    try:
        return [(_compiled(rf"(.*\.)?({pattern})$", pattern), value) for pattern, value in given.items()]
    except re.error as e:
        raise SpecError(f"'{CONFIG}' has the pattern {quoted(e.pattern)}, which is none ({e}): repair the file.") from e


def _compiled(whole: str, pattern: str) -> Pattern:
    """Compile a plain name as it is: two letters to choose from, forty times over, are a trillion ways already."""
    return re.compile(whole) if set(pattern).isdisjoint("*+|([") else _Linear(whole)


def _first(patterns: list[tuple[Pattern, Any]], module: str, default: Any) -> Any:
    return next((value for pattern, value in patterns if pattern.match(module)), default)


def _fault(name: str, what: str) -> SpecError:
    return SpecError(f"'{WEIGHTS}' of the adapter {quoted(name)} {what}: choose another adapter, or save it again.")
