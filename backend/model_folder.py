"""What may lie in a model folder, by its name: what a model's readers open, and what goes along with a result.

The names are those that readers look for: transformers' `vocab_files_names`, chat templates and processors, the
tokenizers of mistral-common, and vLLM's `generation_config.json`. Code and pickles are never among them.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

Kind = Literal["vocabulary", "tokenizer", "template", "processor", "generation", "notes", "license"]

CONFIG, GENERATION, TEMPLATE = "config.json", "generation_config.json", "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"

MAX_JSON = 5_000_000  # bytes
MAX_TOKENIZER = 100_000_000
MAX_TEXT = 1_000_000  # chat templates, cards, licenses

LIMITS: dict[Kind, int] = {
    "vocabulary": MAX_TOKENIZER,
    "tokenizer": MAX_TOKENIZER,
    "template": MAX_TEXT,
    "processor": MAX_JSON,
    "generation": MAX_JSON,
    "notes": MAX_TEXT,
    "license": MAX_TEXT,
}
"""Bytes that a file of each kind may have."""

_LICENSE = r"(\w+-)?(\w+_)?(licen[cs]es?|notices?|copying|use[-_]policy)([-_]\w+)?(\.(md|txt|rst|lesser))?"

_KINDS: dict[Kind, re.Pattern[str]] = {
    # what is a tokenizer, alone or with others: sentencepiece, mistral-common's, tiktoken, transformers' own
    "vocabulary": re.compile(
        r"[\w.-]+\.model(\.v\w+)?|[\w.-]+\.(tiktoken|tokenizer)|tekken[\w.-]*\.json"
        r"|tokenizer(\.[\w.-]+)?\.json|[\w-]*vocab(-\w+)?\.(json|txt)|byte_maps\.json",
        re.ASCII,
    ),
    "tokenizer": re.compile(
        r"tokenizer[\w.-]*\.json|(added_tokens|special_tokens_map|emoji|normalizer)\.json"
        r"|word_(shape|pronunciation)\.json|(merges|dict)\.txt|bpe\.codes",
        re.ASCII,
    ),
    "template": re.compile(r"chat_template\.json|[\w.-]+\.jinja|(additional_)?chat_templates/[\w.-]+\.jinja", re.ASCII),
    "processor": re.compile(r"((image_|video_)?(pre)?processor|audio_tokenizer|feature_extractor)_config\.json"),
    "generation": re.compile(r"generation_config\.json"),
    # Mistral's: vLLM reads params.json only where consolidated weights lie beside it
    "notes": re.compile(r"params\.json|SYSTEM_PROMPT\.txt"),
    "license": re.compile(_LICENSE, re.ASCII | re.IGNORECASE),
}


def kind_of(name: str) -> Kind | None:
    """Return what kind of file goes along under a name; None for weights, config, card, and what nobody reads.

    Args:
        name: Relative to the model's folder, with slashes.
    """
    return next((kind for kind, pattern in _KINDS.items() if pattern.fullmatch(name)), None)


def goes_along(name: str, size: int) -> bool:
    """Return whether a base model's file goes with whatever is made from it, byte for byte.

    Args:
        name: Relative to the model's folder, with slashes.
        size: In bytes; a license that is larger than texts are is left out, admission refuses all others.
    """
    return kind_of(name) not in (None, "license") or is_license(name, size)


def is_license(name: str, size: int) -> bool:
    """Return whether a file, of so many bytes, is the text of a license or a notice."""
    return kind_of(name) == "license" and size <= LIMITS["license"]


def of_tokenizer(name: str) -> bool:
    """Return whether a file is part of a tokenizer, its chat templates left aside."""
    return kind_of(name) in ("vocabulary", "tokenizer")


def has_tokenizer(names: Iterable[str]) -> bool:
    """Return whether there is a tokenizer among files with these names."""
    return any(kind_of(name) == "vocabulary" for name in names)


def has_chat_template(folder: Path) -> bool:
    """Return whether a model folder says how a conversation is written for it."""
    if (folder / TEMPLATE).is_file() or (folder / "chat_template.json").is_file():
        return True
    config = folder / TOKENIZER_CONFIG
    return config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))
