"""Comparing: the same question and seed to several models, one after the other, so that each has the machine alone."""

import csv
import difflib
import io
import re
import unicodedata
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from pydantic import Field

from backend.errors import AppError, JobError
from backend.options import Frozen
from backend.serve.chat import Answer, ChatOptions, Shown, stream
from backend.serve.servers import Servers

MOST = 3
"""Models that are compared at a time."""

SHORT = 40
"""Words between two that stand once in each text, up to which every way to read them is tried."""

PROMPT = "prompt"
"""The column of a table of answers that holds the questions."""

MAX_PROMPTS = 500
MAX_PROMPT_BYTES = 1_000_000  # of the file


class Reply(Frozen):
    """What one model has said so far."""

    answer: Answer | None = Field(None, description="None before it begins.")
    growing: bool = Field(False, description="Whether more of it may come.")
    engine: str | None = None
    memory_bytes: int | None = Field(
        None, description="Of its server, once it has answered: on the GPU where there is one, if that can be told."
    )
    error: str | None = None


def compare(
    servers: Servers, models: Mapping[str, Path], prompt: str, system: str, options: ChatOptions, seconds: float
) -> Iterator[dict[str, Reply]]:
    """Ask all models, and yield what each has said as it grows.

    Args:
        servers: Start what is not started; where memory does not do for all, one makes room for the next.
        models: Their folders, by the names that replies have.
        prompt: The question.
        system: Said before it, if anything.
        options: Sampling, the same for all.
        seconds: How long a server may take to start.
    """
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": prompt})
    replies = dict.fromkeys(models, Reply())
    yield dict(replies)
    for name, folder in models.items():
        try:
            servers.open(folder)
            server = servers.wait(folder, seconds)
            with servers.in_use(folder):
                for answer in stream(server, turns, options):
                    replies[name] = Reply(answer=answer, growing=True, engine=server.engine)
                    yield dict(replies)
            ended = {"growing": False, "memory_bytes": servers.memory_bytes(folder)}
            replies[name] = replies[name].model_copy(update=ended)
        except AppError as e:
            replies[name] = replies[name].model_copy(update={"growing": False, "error": str(e)})
        yield dict(replies)


def differences(first: str, other: str) -> list[tuple[str, bool]]:
    """Cut a text where it begins or ceases to differ from another, by words.

    Args:
        first: What it is compared with.
        other: The text.

    Returns:
        Pieces of `other`, in order, and whether they are not in `first` there.
    """
    before, after = _words(first), _words(other)
    pieces = list[tuple[str, bool]]()
    for (start, last), (begin, end) in _gaps(before, after):
        same = _alike(before[start:last], after[begin:end])
        for text, differs in same:
            if pieces and pieces[-1][1] == differs:
                pieces[-1] = pieces[-1][0] + text, differs
            elif text:
                pieces.append((text, differs))
    return pieces


Span = tuple[int, int]


def _gaps(before: Sequence[str], after: Sequence[str]) -> Iterator[tuple[Span, Span]]:
    """Cut two texts at the words that stand once in each and in the same order, in steps that grow with n log n.

    This is what Bram Cohen's patience diff does; each part begins with such a word.
    """
    places = [_once(before), _once(after)]
    shared = sorted((at, places[1][word]) for word, at in places[0].items() if word in places[1])
    starts = [(0, 0), *_rising(shared), (len(before), len(after))]
    for (start, begin), (last, end) in pairwise(starts):
        yield (start, last), (begin, end)


def _once(words: Sequence[str]) -> dict[str, int]:
    counts = Counter(words)
    return {word: at for at, word in enumerate(words) if counts[word] == 1}


def _rising(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the longest part of pairs in which the second numbers rise, too."""
    ends = list[int]()  # of each pile its top, by number
    piles = list[int]()  # the same, by place
    below = list[int]()
    for place, (_, number) in enumerate(pairs):
        pile = bisect_left(ends, number)
        below.append(piles[pile - 1] if pile else -1)
        ends[pile : pile + 1] = [number]
        piles[pile : pile + 1] = [place]
    found, place = list[tuple[int, int]](), piles[-1] if piles else -1
    while place >= 0:
        found.append(pairs[place])
        place = below[place]
    return found[::-1]


def _alike(before: Sequence[str], after: Sequence[str]) -> list[tuple[str, bool]]:
    """Compare two short texts word by word; of longer ones what they begin and end with."""
    if max(len(before), len(after)) <= SHORT:
        blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
        return [("".join(after[start:end]), kind != "equal") for kind, _, _, start, end in blocks]
    most = min(len(before), len(after))
    first = next((i for i in range(most) if before[i] != after[i]), most)
    last = next((i for i in range(most - first) if before[-1 - i] != after[-1 - i]), most - first)
    middle = len(after) - last
    return [("".join(after[:first]), False), ("".join(after[first:middle]), True), ("".join(after[middle:]), False)]


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]", text)


def read_prompts(file: Path) -> list[str]:
    """Read the questions of a batch: one a line.

    Raises:
        JobError: There are none, or too many; the file is too large, or no text.
    """
    name = file.name
    if file.stat().st_size > MAX_PROMPT_BYTES:
        raise JobError(f"'{name}' has more than {MAX_PROMPT_BYTES // 10**6} MB: give a part of it.")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as e:
        raise JobError(f"'{name}' is no text in UTF-8: save it as one, with one question a line.") from e
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise JobError(f"'{name}' has no questions: write one a line.")
    if len(prompts) > MAX_PROMPTS:
        raise JobError(f"'{name}' has {len(prompts)} questions, {MAX_PROMPTS} at most: give a part of it.")
    return prompts


def batch(
    servers: Servers, models: Mapping[str, Path], rows: Sequence[dict[str, str]], options: ChatOptions, seconds: float
) -> Iterator[int]:
    """Ask all models all questions, model after model, and yield how many answers there are.

    Args:
        servers: As compare() takes them.
        models: Likewise.
        rows: The table: each row holds its PROMPT, and gets by the name of each model that is ready its answer,
            which is empty until it comes.
        options: Sampling, the same for all.
        seconds: How long a server may take to start.

    Raises:
        JobError: A server cannot be started, or stops.
    """
    for number, (name, folder) in enumerate(models.items()):
        servers.open(folder)
        server = servers.wait(folder, seconds)
        for row in rows:
            row[name] = ""
        with servers.in_use(folder):
            for done, row in enumerate(rows, 1):
                row[name] = last(stream(server, [{"role": "user", "content": row[PROMPT]}], options)).text
                yield number * len(rows) + done


def last(answers: Iterator[Shown]) -> Shown:
    """Return the last of what grows, and keep none of those before it."""
    return deque(answers, maxlen=1).pop()


def as_csv(rows: Sequence[Mapping[str, str]]) -> str:
    """Write a table as spreadsheets read it: what a model or a stranger has written is text there, never a formula."""
    text, names = io.StringIO(), list(rows[0])
    lines = [names, *([row[name] for name in names] for row in rows)]
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([_as_text(cell) for cell in line] for line in lines)
    return text.getvalue()


def _as_text(cell: str) -> str:
    """Put an apostrophe before what a spreadsheet would calculate with, also behind what cannot be seen."""
    seen = next((c for c in cell if not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf")), "")
    begins = cell[:1] in ("\t", "\r", "\n") or unicodedata.normalize("NFKC", seen) in _FORMULA
    return f"'{cell}" if begins else cell


_FORMULA = ("=", "+", "-", "@")
