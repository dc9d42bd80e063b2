"""What the installed transformers has classes for, as its own source says; importing it would take seconds."""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_PAIR = re.compile(r'\(\s*"([^"]+)",\s*"(\w+)"')
_CLASS = re.compile(r"^class (\w+Tokenizer)(?:Fast)?\(", re.MULTILINE)
_ANY_TOKENIZER = ("PreTrainedTokenizer", "TokenizersBackend")


def is_native(model_type: str, architecture: str) -> bool:
    """Return whether a class is what transformers itself makes of a model type; letters' case does not count.

    Of a type that it reads with the class of another one, a class is taken that is called after the type.

    Args:
        model_type: As a config says.
        architecture: The class that the config names.
    """
    classes = [_plain(name) for name in _causal().get(model_type, ())]
    own, named = _plain(model_type), _plain(architecture)
    borrowed = named == f"{own}forcausallm" and not any(name.startswith(own) for name in classes)
    return not _causal() or named in classes or (bool(classes) and borrowed)


def is_native_tokenizer(name: object) -> bool:
    """Return whether transformers has a tokenizer class of that name."""
    return isinstance(name, str) and name.removesuffix("Fast") in _tokenizers()


@cache
def _causal() -> dict[str, list[str]]:
    """Return the classes of each model type that write text; none where transformers is not installed."""
    found: dict[str, list[str]] = {}
    for path in _sources("auto/modeling_auto.py"):
        table = path.read_text(encoding="utf-8").partition("\nMODEL_FOR_CAUSAL_LM_MAPPING_NAMES = ")[2]
        for model_type, architecture in _PAIR.findall(table.partition("\n)\n")[0]):
            found.setdefault(model_type, []).append(architecture)
    return found


@cache
def _tokenizers() -> frozenset[str]:
    sources = (path.read_text(encoding="utf-8") for path in _sources("*/tokenization_*.py"))
    return frozenset((*_ANY_TOKENIZER, *(name for text in sources for name in _CLASS.findall(text))))


def _sources(pattern: str) -> list[Path]:
    spec = find_spec("transformers")
    return list((Path(spec.origin).parent / "models").glob(pattern)) if spec and spec.origin else []


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
