"""Where an answer ends: before the first stop text, however its pieces are cut."""

import random

import pytest

from backend.options import parse
from backend.serve.chat import ChatOptions
from backend.serve.stops import Stops


def through(text: str, stops: list[str], cuts: list[int]) -> str:
    """Send a text through in pieces, and return what came out."""
    found = Stops(stops)
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    return "".join(map(found.take, pieces)) + found.rest()


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("ABCD", ["C"], "AB"),
        ("one\n\nUser: two", ["\n\nUser:", "User:"], "one"),
        ("aab aaab", ["aaab"], "aab "),
        ("abababac", ["ababac", "zz"], "ab"),
        ("the end", ["END", "ending"], "the end"),
        ("never", [], "never"),
        ("empty stops do nothing", [""], "empty stops do nothing"),
        ("first of several", ["several", "of", "first of all"], "first "),
        ("ünïcode ✋ stop", ["✋"], "ünïcode "),
    ],
)
def test_an_answer_ends_before_its_stop_text_in_whatever_pieces_it_comes(
    text: str, stops: list[str], expected: str
) -> None:
    rng = random.Random(0)
    assert through(text, stops, list(range(1, len(text)))) == expected
    for _ in range(50):
        cuts = sorted(rng.sample(range(1, len(text)), rng.randrange(len(text) - 1)))
        assert through(text, stops, cuts) == expected


def test_a_stop_text_is_taken_with_its_blanks() -> None:
    assert parse(ChatOptions, {"stop": ("\n", "User: ")}).stop == ("\n", "User: ")


def test_nothing_that_may_become_a_stop_text_is_shown_before_that_is_known() -> None:
    found = Stops(["</answer>"])
    assert [found.take(piece) for piece in ("4", "2</", "ans", "w", "er>", "5")] == ["4", "2", "", "", "", ""]
    assert found.met
    assert found.rest() == ""
