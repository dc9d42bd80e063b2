"""What the installed transformers has classes for, as its own source says; importing it would take seconds."""

import ast
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_PAIR = re.compile(r'\(\s*"([^"]+)",\s*"(\w+)"')
_TYPE = re.compile(r'^    model_type = "([^"]+)"', re.MULTILINE)
_CAN = re.compile(r"^    _?supports_(\w+) = True", re.MULTILINE)
_ABILITIES = frozenset(("sdpa", "flash_attn", "gradient_checkpointing"))
_CLASS = re.compile(r"^class (\w+Tokenizer)(?:Fast)?\(", re.MULTILINE)
_ANY_TOKENIZER = ("PreTrainedTokenizer", "TokenizersBackend")

_LIKE = re.compile(r'^    "(\w+)": "(\w+)",', re.MULTILINE)
_SPLIT_BEFORE = ("mixtral", "qwen2_moe")
"""Model types that stand in transformers' table for all whose experts it joins in the same way, and in PEFT's."""

_TEXT, _PICTURES = "CAUSAL_LM", "IMAGE_TEXT_TO_TEXT"
_NEITHER = ("MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "TEXT_TO_WAVEFORM")
"""Tables of encoders, encoder-decoders and audio models, some of which stand in the table of language models too."""


@cache
def text_types() -> frozenset[str]:
    """Return the model types that transformers builds a decoder of text for, without what else it may read."""
    return frozenset(_table(_TEXT)).difference(*map(_table, _NEITHER))


@cache
def picture_types() -> frozenset[str]:
    """Return the model types that transformers builds for pictures and text."""
    return frozenset(_table(_PICTURES)).difference(*map(_table, _NEITHER))


def is_native(model_type: str, architecture: str) -> bool:
    """Return whether a class is what transformers itself makes of a model type; letters' case does not count.

    Of a type that it reads with the class of another one, a class is taken that is called after the type.

    Args:
        model_type: As a config says.
        architecture: The class that the config names.
    """
    text = [_plain(name) for name in _table(_TEXT).get(model_type, ())]
    own, named = _plain(model_type), _plain(architecture)
    borrowed = named == f"{own}forcausallm" and not any(name.startswith(own) for name in text)
    known = [*text, *map(_plain, _table(_PICTURES).get(model_type, ()))]
    return not _table(_TEXT) or named in known or (bool(text) and borrowed)


@cache
def defaults(model_type: str) -> Mapping[str, Any]:
    """Return what transformers fills in where a config of a model type says nothing, but for what it computes.

    Of a model that wraps a text model, `text_config` holds the text model's.
    """
    path = _configs().get(model_type)
    if path is None:
        return {}
    body = ast.parse(path.read_text(encoding="utf-8")).body
    classes = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
    named = next(c for c in classes.values() if _assigned(c).get("model_type") == model_type)
    said = _inherited(named, classes)
    for inner in _held(named, "text_config"):
        if isinstance(inner, ast.Name) and inner.id in classes:
            said["text_config"] = _inherited(classes[inner.id], classes)
        elif isinstance(inner, ast.keyword) and inner.arg == "model_type" and isinstance(inner.value, ast.Constant):
            said["text_config"] = defaults(str(inner.value.value))
    return said


@cache
def lacks(model_type: str) -> frozenset[str]:
    """Return what no class of a model type can do, of sdpa, flash_attn and gradient_checkpointing."""
    path = _configs().get(model_type)
    source = _modeling(path).read_text(encoding="utf-8") if path and _modeling(path).is_file() else ""
    own = "(PreTrainedModel)" in source  # else its classes are another type's, which is asked for itself
    return _ABILITIES.difference(_CAN.findall(source)) if own else frozenset()


@cache
def rebuilds_experts(model_type: str) -> bool:
    """Return whether PEFT takes the names of a mixture's single experts, wherever they stand, for all of its experts.

    It does so for models that it knows from before transformers had their experts in one tensor.
    """
    [source] = [path.read_text(encoding="utf-8") for path in sources("../conversion_mapping.py")] or [""]
    table = source.partition("\n_MODEL_TO_CONVERSION_PATTERN = ")[2].partition("\n}\n")[0]
    known = {name for name, like in _LIKE.findall(table) if like in _SPLIT_BEFORE}
    return model_type in known | {*_SPLIT_BEFORE}


def is_native_tokenizer(name: object) -> bool:
    """Return whether transformers has a tokenizer class of that name."""
    return isinstance(name, str) and name.removesuffix("Fast") in _tokenizers()


@cache
def _table(name: str) -> dict[str, list[str]]:
    """Return the classes of each model type in one of transformers' tables; none where it is not installed."""
    found: dict[str, list[str]] = {}
    for path in sources("auto/modeling_auto.py"):
        table = path.read_text(encoding="utf-8").partition(f"\nMODEL_FOR_{name}_MAPPING_NAMES = ")[2]
        for model_type, architecture in _PAIR.findall(table.partition("\n)\n")[0]):
            found.setdefault(model_type, []).append(architecture)
    return found


def _inherited(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> dict[str, Any]:
    """Return the values that a class and those that it is made from in the same file assign."""
    above = [classes[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in classes]
    said: dict[str, Any] = {}
    for base in reversed(above):
        said |= _inherited(base, classes)
    return said | _assigned(node)


def _assigned(node: ast.ClassDef) -> dict[str, Any]:
    """Return the constants in the body of a class, by name."""
    found: dict[str, Any] = {}
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            target, value = statement.target.id, statement.value
        elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            target, value = statement.targets[0].id, statement.value
        else:
            continue
        if isinstance(value, ast.Constant):
            found[target] = value.value
    return found


def _held(node: ast.ClassDef, key: str) -> list[ast.AST]:
    """Return everything in what the dicts in the body of a class hold for a key."""
    dicts = [inner for inner in ast.walk(node) if isinstance(inner, ast.Dict)]
    pairs = [pair for found in dicts for pair in zip(found.keys, found.values, strict=True)]
    values = [value for name, value in pairs if isinstance(name, ast.Constant) and name.value == key]
    return [inner for value in values for inner in ast.walk(value)]


@cache
def _configs() -> dict[str, Path]:
    """Return the file that holds the config of each model type."""
    files = [(path, path.read_text(encoding="utf-8")) for path in sources("*/configuration_*.py")]
    return {model_type: path for path, source in files for model_type in _TYPE.findall(source)}


def _modeling(config: Path) -> Path:
    """Return the file of a model's classes, by that of its config."""
    return config.with_name(config.name.replace("configuration_", "modeling_"))


@cache
def _tokenizers() -> frozenset[str]:
    texts = (path.read_text(encoding="utf-8") for path in sources("*/tokenization_*.py"))
    return frozenset((*_ANY_TOKENIZER, *(name for text in texts for name in _CLASS.findall(text))))


def sources(pattern: str) -> list[Path]:
    """Return the files of transformers that a pattern finds beside its models; none where it is not installed."""
    spec = find_spec("transformers")
    return list((Path(spec.origin).parent / "models").glob(pattern)) if spec and spec.origin else []


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
