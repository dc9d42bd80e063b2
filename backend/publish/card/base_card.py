"""The base model's card: the few facts of it that stay true of what is made from it, and its license files."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from backend.artifacts.artifact import BASE_CARD
from backend.errors import SpecError
from backend.hub.files import LocalFiles
from backend.hub.front_matter import languages_of, license_of, read_card
from backend.options import Frozen
from backend.publish.card.licenses import IDS

_MAX_ITEMS = 200
_WORD = re.compile(r"[^\s/\\<>{}`|][^\\<>{}`|\r\n]{0,119}")
_REPO_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_LINK = re.compile(r"https?://[^\s()<>\"`\\]{1,500}|[\w][\w./-]{0,119}")

RELATIONS = ("adapter", "finetune", "merge", "quantized")
"""What `base_model_relation` may say."""

_OF_ITS_FILES = re.compile(
    r"safetensors|pytorch|tf|jax|flax|onnx|transformers\.js|gguf|ggml|llama\.cpp|mlx|coreml|openvino|rust|tensorboard"
    r"|(4|8)-bit|gptq|awq|bitsandbytes|compressed-tensors|endpoints_compatible|autotrain_compatible|has_space"
    r"|(base_model|license|dataset|region|model-index|template|deploy|doi):.*",
    re.IGNORECASE,
)
"""Tags that speak of the base's files or that the Hub works out by itself: of the result they may be false."""


class BaseCard(Frozen):
    """What a base model's card says; a field that it does not say is empty, never guessed."""

    license: tuple[str, ...] = ()
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    datasets: tuple[str, ...] = Field((), description="What the base model was trained on.")
    weights_bytes: int | None = Field(None, description="Size of the base model's weight files.")
    base_model: tuple[str, ...] = Field((), description="What it was made of itself; carried on only by own_card().")
    base_model_relation: str | None = None
    license_of_base: bool = Field(False, description="Whether own_card() named none, and its base model's stands here.")

    @property
    def licenses(self) -> list[str]:
        """Ids of the license, and its name, which of `other` says more."""
        return [*self.license, *([self.license_name] if self.license_name else [])]


def base_card(card: Mapping[str, Any], weights_bytes: int) -> bytes:
    """Return the content of BASE_CARD.

    Args:
        card: The front matter of the base model's card.
        weights_bytes: Size of its weight files.
    """
    said = _base_card(card).model_copy(update={"weights_bytes": weights_bytes or None})
    text = json.dumps(said.model_dump(mode="json", exclude_defaults=True), indent=2, ensure_ascii=False)
    return (text + "\n").encode()


def own_card(card: Mapping[str, Any]) -> BaseCard:
    """Return what the card of a folder that is published itself says, also of what it was made from.

    Args:
        card: Its front matter.
    """
    named, relation = _words(card.get("base_model")), card.get("base_model_relation")
    return _base_card(card).model_copy(
        update={
            "base_model": named if all(_REPO_ID.fullmatch(name) for name in named) else (),
            "base_model_relation": relation if relation in RELATIONS else None,
        }
    )


def licensed(own: BaseCard, base: Mapping[str, Any]) -> BaseCard:
    """Return what own_card() does, with the base model's license.

    Args:
        own: What own_card() gave, without a license.
        base: The front matter of the base model's card.
    """
    found = _base_card(base).model_dump(include={"license", "license_name", "license_link"})
    return own.model_copy(update=found | {"license_of_base": bool(found["license"])})


def read_base_card(folder: Path) -> BaseCard:
    """Return what an artifact knows of its base's card; a folder that was published says it in its own card.

    Raises:
        SpecError: The file is damaged.
    """
    try:
        return BaseCard.model_validate_json((folder / BASE_CARD).read_bytes())
    except FileNotFoundError:
        return own_card(read_card(LocalFiles(folder)))
    except (OSError, ValidationError) as e:
        raise SpecError(f"'{folder.name}/{BASE_CARD}' cannot be read: make the artifact again.") from e


def _base_card(card: Mapping[str, Any]) -> BaseCard:
    license, named = license_of(card), _words(card.get("license"))
    known = tuple(name for name in named if name in IDS)
    return BaseCard(
        license=known if known == named else ("other",),
        license_name=_one(license.name, _WORD) or (None if known == named else ", ".join(named)),
        license_link=_one(license.link, _LINK),
        language=_words(list(languages_of(card))),
        tags=tuple(tag for tag in _words(card.get("tags")) if not _OF_ITS_FILES.fullmatch(tag)),
        datasets=_words(card.get("datasets")),
    )


def _words(value: Any) -> tuple[str, ...]:
    """Return a text or a list of texts as a list; what is something else is left out."""
    items = value if isinstance(value, list) else [value]
    found = (_one(item, _WORD) for item in items[:_MAX_ITEMS])
    return tuple(dict.fromkeys(item for item in found if item))


def _one(value: Any, pattern: re.Pattern[str]) -> str | None:
    text = value.strip() if isinstance(value, str) else ""
    return text if pattern.fullmatch(text) else None
