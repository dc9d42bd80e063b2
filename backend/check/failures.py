"""Failures that raise no error: answers that never end, repeat themselves, are empty, only think, or call no tool.

A result is judged beside its original, prompt by prompt, so that a weak model is not called broken for what it always
did. Near ties fall otherwise after any change of the weights: one prompt more or less means nothing.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from backend.check.prompts import Prompt
from backend.check.tool_calls import calls
from backend.finetune.rendering import stops_of
from backend.models.tokens import THOUGHTS, control_tokens

GRAM, FEWEST, NEW = 4, 24, 1 / 3
"""Of the groups of so many tokens in the second half of an answer, if there are enough, the share that must differ."""

MORE = 0.25
"""Share of prompts in which a result may fail where its original does not, net of those where it is the other way."""


class Answer(NamedTuple):
    """What a model read and wrote, as tokens, and whether it ended by itself."""

    read: list[int]
    written: list[int]
    ended: bool = True


class _Kind(NamedTuple):
    """A failure in words: what the result does, what its original does, and what to do."""

    result: str
    original: str
    remedy: str


_MORE_BITS = "quantize to more bits"

KINDS = {
    "thinking": _Kind(
        "does not close its thoughts within {most} tokens",
        "closes them",
        f"calibrate and tune on rows with their thoughts, or {_MORE_BITS}",
    ),
    "unseen": _Kind(
        "writes the token that ends an answer and goes on",
        "stops",
        "name that token in eos_token_id of generation_config.json",
    ),
    "loop": _Kind("repeats itself for {most} tokens", "ends", f"tune for fewer steps, or {_MORE_BITS}"),
    "endless": _Kind(
        "does not end within {most} tokens",
        "ends",
        f"tune on rows whose answers end, {_MORE_BITS}, or raise max_tokens if its answers are meant to be that long",
    ),
    "empty": _Kind("answers nothing", "answers", f"tune on rows with longer answers, or {_MORE_BITS}"),
    "call": _Kind(
        "calls no tool in a way that can be parsed and fits the tool's schema",
        "does",
        f"calibrate and tune on rows with tool calls, or {_MORE_BITS}",
    ),
}


def symptoms(prompts: Sequence[Prompt], answers: Sequence[Answer], tokenizer: Any) -> list[str | None]:
    """Return which of KINDS each answer shows, None where none.

    Args:
        prompts: That were asked.
        answers: To them.
        tokenizer: The model's.
    """
    stops, special = stops_of(tokenizer, ()), control_tokens(tokenizer).pattern()
    found = list[str | None]()
    for prompt, answer in zip(prompts, answers, strict=True):
        rest = _behind_thoughts(prompt.text, tokenizer.decode(answer.written, skip_special_tokens=False))
        if not answer.ended:
            found.append(_endless(rest, answer.written, stops))
        elif rest is None:
            found.append("thinking")
        elif prompt.tool:
            found.append(None if calls(rest, prompt.tool) else "call")
        else:
            found.append(None if special.sub("", rest).strip() else "empty")
    return found


def _endless(rest: str | None, written: list[int], stops: set[int]) -> str:
    """Say how an answer is that did not end by itself."""
    if stops & set(written):
        return "unseen"
    if rest is None:
        return "thinking"
    return "loop" if _repeats(written) else "endless"


def _behind_thoughts(prompt: str, answer: str) -> str | None:
    """Return what an answer says behind its thoughts, which the prompt may have opened; None: they do not close."""
    for opens, closes in THOUGHTS:
        if prompt.rstrip().endswith(opens) or opens in answer:
            _, closed, rest = answer.rpartition(closes)
            return rest if closed and opens not in rest else None
    return answer


def _repeats(tokens: list[int]) -> bool:
    half = tokens[len(tokens) // 2 :]
    grams = [tuple(half[i : i + GRAM]) for i in range(len(half) - GRAM + 1)]
    return len(grams) >= FEWEST and len(set(grams)) <= NEW * len(grams)


def findings(
    prompts: Sequence[Prompt], result: Sequence[str | None], original: Sequence[str | None], most: int
) -> tuple[str, ...]:
    """Say in which ways a result fails and its original does not, a sentence each; nothing where they are alike.

    Args:
        prompts: That both were asked.
        result: What symptoms() has found in the result's answers.
        original: The same of its original.
        most: Tokens that an answer might have.
    """
    said = list[str]()
    for wanted in (False, True):  # prompts that want a tool apart: they are few
        asked = [i for i, prompt in enumerate(prompts) if (prompt.tool is not None) == wanted]
        worse = [i for i in asked if result[i] and not original[i]]
        better = [i for i in asked if original[i] and not result[i]]
        if len(worse) - len(better) <= MORE * len(asked):
            continue
        counts = Counter(result[i] for i in worse)
        for name, count in counts.items():
            first = prompts[next(i for i in worse if result[i] == name)].words
            kind = KINDS[str(name)]
            said.append(
                f"It {kind.result.format(most=most)} in {count} of {len(asked)} prompts, as in '{first}', where its"
                f" original {kind.original}: {kind.remedy}."
            )
    return tuple(said)


def counted(result: Sequence[str | None], original: Sequence[str | None] | None, most: int) -> str:
    """Say how many answers of a result show any of this, and of its original, where it was asked.

    Args:
        result: What symptoms() has found.
        original: The same of its original; None where it was not needed, or not at hand.
        most: Tokens that an answer might have.
    """
    count = sum(map(bool, result))
    looked = f"Of {len(result)} answers of at most {most} tokens, {count or 'none'}"
    what = "without an end, empty, repeating, with open thoughts, or without the tool call that was wanted"
    if not count:
        return f"{looked} is {what}."
    compared = "its original was not at hand to compare: name it as the reference"
    if original is not None:
        compared = f"of its original's {sum(map(bool, original)) or 'none'}"
    return f"{looked} {'is' if count == 1 else 'are'} {what}; {compared}."
