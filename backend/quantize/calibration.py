"""Calibration: text or rows become windows of tokens, all of one length and full, that the model reads.

A window begins with the token that the tokenizer puts before every text, where it has one: some models compute nothing
sensible without. Evaluation text is never among it.
"""

from collections.abc import Iterable
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backend.errors import SpecError
from backend.progress import Report

FEW = 8192
"""Tokens from which a Gram matrix of some thousand inputs begins to mean something."""

ALIKE = 0.5
"""Share of windows that repeat an earlier one from which calibration sees too little."""


SPREAD = 16
"""Of so many times the tokens that are asked for, windows are taken evenly; what comes later is not looked at."""


class Windows(NamedTuple):
    """What calibration reads.

    Attributes:
        name: Of the text or data set, for the card.
        ids: Tokens, int64 [windows, length].
    """

    name: str
    ids: NDArray[np.int64]

    @property
    def words(self) -> str:
        """What it is and how much, in words."""
        count, length = self.ids.shape
        return f"{self.name}: {count} windows of {length} tokens"


def cut(name: str, tokens: Iterable[list[int]], before: list[int], samples: int, length: int) -> Windows:
    """Cut the tokens of texts, one after the other, into full windows.

    Args:
        name: Of the texts.
        tokens: Of each text, without `before`.
        before: What every window begins with.
        samples: Windows at the most; they are spread over all that there is.
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
    chosen = windows[np.arange(min(samples, count)) * count // min(samples, count)]
    return Windows(name, np.hstack([np.tile(np.array(before, np.int64), (len(chosen), 1)), chosen]))


def text_windows(name: str, text: str, tokenizer: Any, samples: int, length: int) -> Windows:
    """Cut a plain text into windows; see cut()."""
    before = _before(tokenizer)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return cut(name, [ids], before, samples, length)


def windows_of(name: str, tokens: Iterable[list[int]], tokenizer: Any, samples: int, length: int) -> Windows:
    """Cut the tokens of rows, as they are rendered, into windows; see cut()."""
    return cut(name, tokens, _before(tokenizer), samples, length)


def judge(windows: Windows, samples: int, report: Report) -> None:
    """Say how much there is, and warn where it is too little or too alike."""
    count, length = windows.ids.shape
    asked = f"; {samples} were asked for, there is no more text" if count < samples else ""
    report.log(f"Calibrating on {windows.words}, {count * length} in all{asked}.")
    if count * length < FEW:
        report.warn(f"Calibration saw {count * length} tokens only, better are {FEW} and more: give more text.")
    repeated = count - len(np.unique(windows.ids, axis=0))
    if repeated > ALIKE * count:
        report.warn(f"{repeated} of {count} calibration windows repeat another: give more varied text.")


def _before(tokenizer: Any) -> list[int]:
    """Give the tokens that the tokenizer puts before a text."""
    whole = tokenizer("a", add_special_tokens=True)["input_ids"]
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    return list(whole[:at])
