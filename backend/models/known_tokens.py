"""Which tokens the files of a tokenizer name, read as JSON: no library, no code, nothing rendered."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from backend.model_folder import MAX_TOKENIZER, TOKENIZER_CONFIG, settings_in
from backend.strict_json import parse_object

_NUMBER = re.compile(r"[0-9]{1,9}")
_ROLES = ("bos_token", "eos_token", "unk_token")


class KnownTokens(NamedTuple):
    """What the files of a tokenizer say; one of sentencepiece alone names only its added tokens."""

    vocabulary: Mapping[str, int]
    added: Mapping[str, int]
    roles: Mapping[str, str]

    def differs_from(self, base: "KnownTokens") -> bool:
        """Return whether a tokenizer has tokens that its base model's lacks, or begins or ends texts with others."""
        known = {*base.vocabulary, *base.added, *base.roles.values()}
        both = self.vocabulary and base.vocabulary
        other_roles = any(base.roles.get(role, text) != text for role, text in self.roles.items())
        return bool(self.added.keys() - known or (both and self.vocabulary != base.vocabulary) or other_roles)

    def beyond(self, rows: int) -> dict[str, int]:
        """Return the tokens whose numbers are not among those of so many embeddings."""
        return {text: number for text, number in {**self.vocabulary, **self.added}.items() if number >= rows}


def known_tokens(folder: Path) -> KnownTokens:
    """Return what the tokenizer of a model folder names.

    Raises:
        SpecError: A file of it is damaged.
    """
    settings, whole = settings_in(folder, TOKENIZER_CONFIG), _large(folder, "tokenizer.json")
    model = whole.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else _large(folder, "vocab.json")
    if isinstance(vocabulary, list):  # of Unigram: pieces with their scores, in order
        vocabulary = {piece[0]: number for number, piece in enumerate(vocabulary) if isinstance(piece, list) and piece}
    added = _large(folder, "added_tokens.json")
    listed = whole.get("added_tokens")
    entries = [(e.get("id"), e) for e in listed if isinstance(e, dict)] if isinstance(listed, list) else []
    numbered = settings.get("added_tokens_decoder")
    if isinstance(numbered, dict):
        entries += [(int(number), entry) for number, entry in numbered.items() if _NUMBER.fullmatch(number)]
    added |= {text: number for number, entry in entries if (text := _text(entry))}
    roles = settings_in(folder, "special_tokens_map.json") | settings
    return KnownTokens(
        _numbers(vocabulary), _numbers(added), {role: text for role in _ROLES if (text := _text(roles.get(role)))}
    )


def _text(token: Any) -> str | None:
    """Return the text of a token, which stands alone or in an object."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def _numbers(tokens: Any) -> dict[str, int]:
    pairs = tokens.items() if isinstance(tokens, dict) else ()
    return {text: number for text, number in pairs if isinstance(text, str) and type(number) is int}


def _large(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    return parse_object(path.read_bytes(), name, MAX_TOKENIZER) if path.is_file() else {}
