"""Calibration: text or rows become windows of tokens, all of one length and full, that the model reads.

A window begins with the token that the tokenizer puts before every text, where it has one: some models compute nothing
sensible without. Evaluation text is never among it.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backend.errors import SpecError
from backend.models.chat_template import abilities
from backend.models.tokens import around, has_thoughts

FEW = 8192
"""Tokens from which a Gram matrix of some thousand inputs begins to mean something."""

ALIKE = 0.5
"""Share of windows that repeat an earlier one from which calibration sees too little."""

SPREAD = 16
"""Of so many times the tokens that are asked for, windows are taken evenly; what comes later is not looked at."""

PASSAGE = 48
"""Tokens of a window that are looked for in the text that quality is measured on."""

ALLOWED = 0.05
"""Share of windows that may be found there: a phrase that everybody uses."""

HEARD = 8
"""Windows whose language is looked at, spread over all."""

LETTERS = 20_000
"""Of a text whose language is looked at."""

SURE = 0.8
"""Probability from which a text is in one language: of code it is below 0.3."""

_LANGUAGES = {
    "ar": "Arabic", "bn": "Bengali", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "es": "Spanish", "fa": "Persian", "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi", "hu": "Hungarian",
    "id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "no": "Norwegian",
    "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sv": "Swedish", "th": "Thai",
    "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip


class Windows(NamedTuple):
    """What calibration reads.

    Attributes:
        name: Of the text or data set, for the card.
        ids: Tokens, int64 [windows, length].
        held: Those of windows that it does not read: they decide whether training scales has gained anything.
    """

    name: str
    ids: NDArray[np.int64]
    held: NDArray[np.int64] = np.empty((0, 0), np.int64)

    @property
    def words(self) -> str:
        """What it is and how much, in words."""
        count, length = self.ids.shape
        return f"{self.name}: {count} windows of {length} tokens"

    def holding_back(self, most: int) -> "Windows":
        """Return them with some held back, spread over all: at most so many, and an eighth."""
        count = min(most, len(self.ids) // 8)
        at = (2 * np.arange(count) + 1) * len(self.ids) // max(2 * count, 1)
        return self._replace(ids=np.delete(self.ids, at, 0), held=self.ids[at])


def cut(name: str, tokens: Iterable[list[int]], before: list[int], samples: int, length: int) -> Windows:
    """Cut the tokens of texts, one after the other, into full windows.

    Args:
        name: Of the texts.
        tokens: Of each text, without `before`.
        before: What every window begins with.
        samples: Windows at most; they are spread over all that there is.
        length: Tokens in a window.

    Raises:
        SpecError: There is not enough for one window.
    """
    step = length - len(before)
    stream = np.fromiter(islice(chain.from_iterable(tokens), SPREAD * samples * max(step, 0)), np.int64)
    count = len(stream) // step if step > 0 else 0
    if not count:
        raise SpecError(
            f"The calibration text '{name}' has {len(stream)} tokens, fewer than one window of {length}: give more, or"
            " a smaller max_seq_length."
        )
    windows = stream[: count * step].reshape(count, step)
    chosen = spread(windows, samples)
    return Windows(name, np.hstack([np.tile(np.array(before, np.int64), (len(chosen), 1)), chosen]))


def spread(windows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return so many windows at most, spread over all; there is at least one.

    Args:
        windows: [windows, length].
        most: At least 1.
    """
    count = min(most, len(windows))
    return windows[np.arange(count) * len(windows) // count]


def text_windows(name: str, text: str, tokenizer: Any, samples: int, length: int) -> Windows:
    """Cut a plain text into windows; see cut()."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return windows_of(name, [ids], tokenizer, samples, length)


def windows_of(name: str, tokens: Iterable[list[int]], tokenizer: Any, samples: int, length: int) -> Windows:
    """Cut the tokens of rows, as they are rendered, into windows; see cut()."""
    before = around(tokenizer).before
    bare = (ids[len(before) :] if before and ids[: len(before)] == before else ids for ids in tokens)
    return cut(name, bare, before, samples, length)


def joined(parts: Sequence[Windows]) -> Windows:
    """Return windows of several texts as one, each of the same length."""
    name = ", and ".join(f"{part.name} ({len(part.ids)} windows)" for part in parts)
    return Windows(name, np.vstack([part.ids for part in parts]))


def doubts(windows: Windows, tokenizer: Any, measured_on: str | None) -> list[str]:
    """Say where calibration reads too little, too much of the same, or another language than quality is measured in.

    Args:
        windows: What it reads.
        tokenizer: Made them.
        measured_on: The text that quality is measured on, where it is known.
    """
    count, length = windows.ids.shape
    found = []
    if count * length < FEW:
        found.append(f"Calibration reads {count * length} tokens only, better are {FEW} and more: give more text.")
    repeated = count - len(np.unique(windows.ids, axis=0))
    if repeated > ALIKE * count:
        found.append(f"{repeated} of {count} calibration windows repeat another: give more varied text.")
    if measured_on:
        read, measured = _language(windows, tokenizer), language(measured_on)
        if read and measured and read != measured:
            found.append(
                f"Calibration reads {read}, quality is measured in {measured}: measure on a text in the language that"
                " the model is for, and calibrate on the same."
            )
    return found


def unsuited(windows: Windows, tokenizer: Any, talks: bool, tuned_on: str | None) -> list[str]:
    """Say where calibration reads something else than what the model is made for.

    Args:
        windows: What it reads.
        tokenizer: Made them.
        talks: Whether conversations are among them.
        tuned_on: What the model is tuned on in the same recipe, where that is something else.
    """
    able = abilities(tokenizer)
    found = []
    if able.chats and not talks:
        found.append(
            "Calibration reads plain text, and the model has a chat template: calibrate on rows of conversations, or"
            " name none, and embedded ones are read too."
        )
    elif able.thinks and not any(has_thoughts(tokenizer.decode(ids)) for ids in windows.ids):
        found.append(
            "Calibration reads no thoughts, and the model's chat template is made for them: calibrate on rows with"
            " thoughts (reasoning_content), or name none, and embedded ones are read too."
        )
    if tuned_on:
        read, learned = _language(windows, tokenizer), language(tuned_on)
        if read and learned and read != learned:
            found.append(
                f"Calibration reads {read}, and the model is tuned on {learned}: calibrate on the rows that it is tuned"
                " on, which are read where none are named."
            )
    return found


def _language(windows: Windows, tokenizer: Any) -> str | None:
    some = windows.ids[:: max(1, len(windows.ids) // HEARD)].reshape(-1)
    return language(tokenizer.decode(some, skip_special_tokens=True))


def check_apart(windows: Windows, tokenizer: Any, measured_on: str) -> None:
    """Refuse to calibrate on the text that quality is measured on: the figures would be better than the model.

    Args:
        windows: What calibration reads.
        tokenizer: Made them.
        measured_on: The text that quality is measured on.

    Raises:
        SpecError: Passages of it are in both.
    """
    start = windows.ids.shape[1] // 4
    passages = (tokenizer.decode(ids[start : start + PASSAGE], skip_special_tokens=True) for ids in windows.ids)
    shared = sum(len(p.strip()) >= PASSAGE // 2 and p.strip() in measured_on for p in passages)
    if shared > ALLOWED * len(windows.ids):
        raise SpecError(
            f"{shared} of the {len(windows.ids)} calibration windows of '{windows.name}' stand in the text that quality"
            " is measured on, so the figures would mean nothing: calibrate, or measure, on another text."
        )


def language(text: str) -> str | None:
    """Name the language of a text; None where it is not clear, as of code and numbers.

    Args:
        text: Of which the first part is read.

    Returns:
        As it is called in English, or where this is not known its code in ISO 639-1.
    """
    code = str(_identifier().classify(text[:LETTERS])[0])
    return None if code == "und" else _LANGUAGES.get(code, code)


@cache
def _identifier() -> Any:
    """Read what languages look like, which takes most of the time."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=SURE)
