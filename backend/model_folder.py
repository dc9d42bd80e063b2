"""What may lie in a model folder, by its name: what a model's readers open, and what goes along with a result.

The names are those that readers look for: transformers' `vocab_files_names`, chat templates and processors, the
tokenizers of mistral-common, and vLLM's `generation_config.json`. Code and pickles are never among them.
"""

import json
import re
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any, Literal, TypeGuard

from backend.strict_json import parse_object

LEFT_BEHIND = ("auto_map", "custom_pipelines", "custom_generate")

Kind = Literal["vocabulary", "tokenizer", "template", "processor", "generation", "notes", "license"]

CONFIG = "config.json"
GENERATION = "generation_config.json"
TEMPLATE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
"""What says how pictures are prepared for a model; one of them does."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER = "adapter_model.safetensors"

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


def has_tokenizer(names: Iterable[str]) -> bool:
    """Return whether there is a tokenizer among files with these names."""
    return any(kind_of(name) == "vocabulary" for name in names)


def settings_in(folder: Path, name: str) -> dict[str, Any]:
    """Return what a settings file of a model folder says; nothing where there is none."""
    path = folder / name
    return parse_object(path.read_bytes(), name, MAX_JSON) if path.is_file() else {}


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter, which needs its base model."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).is_file()


def has_chat_template(folder: Path) -> bool:
    """Return whether a model folder says how a conversation is written for it."""
    return bool(template_in(folder) or settings_in(folder, TOKENIZER_CONFIG).get("chat_template"))


def template_in(folder: Path) -> str | None:
    """Return the chat template of a model folder, the default one where it has several; None where it has none."""
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    for name in (TOKENIZER_CONFIG, "chat_template.json"):
        found = settings_in(folder, name).get("chat_template")
        if isinstance(found, list):
            found = next((t.get("template") for t in found if isinstance(t, dict) and t.get("name") == "default"), None)
        if isinstance(found, str) and found:
            return found
    return None


def set_template(folder: Path, text: str) -> None:
    """Put a chat template in place of all that a model folder has."""
    places = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    for name in places:
        if kind_of(name) == "template":
            (folder / name).unlink()
    (folder / TEMPLATE).write_text(text, encoding="utf-8")
    settings = settings_in(folder, TOKENIZER_CONFIG)
    if settings.pop("chat_template", None) is not None:
        _write(folder, TOKENIZER_CONFIG, settings)


def is_token(value: Any) -> TypeGuard[int]:
    """Return whether a setting is the number of a token; some write -1 where there is none."""
    return type(value) is int and 0 <= value < 2**31


def stops_in(folder: Path) -> set[int]:
    """Return the tokens that end an answer, as a model folder's generation_config.json names them, else its config."""
    for settings in (settings_in(folder, GENERATION), settings_in(folder, CONFIG)):
        named = settings.get("eos_token_id")
        stops = {token for token in (named if isinstance(named, list) else [named]) if is_token(token)}
        if stops:
            return stops
    return set()


def set_stops(folder: Path, stops: Set[int]) -> None:
    """Have a model folder's generation_config.json name the tokens that end an answer; one that does stays as it is."""
    settings = settings_in(folder, GENERATION)
    if (folder / GENERATION).is_file() and stops == stops_in(folder):
        return
    _write(folder, GENERATION, settings | {"eos_token_id": sorted(stops)})


def _write(folder: Path, name: str, settings: Mapping[str, Any]) -> None:
    (folder / name).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json of an admitted folder, without what names code beside the model."""
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {key: value for key, value in said.items() if key not in LEFT_BEHIND}


def weights_bytes(folder: Path) -> int:
    """Return the bytes of the weights in a model folder; 0 where there are none."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
