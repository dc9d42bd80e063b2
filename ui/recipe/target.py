"""The question that comes before a method, "Where will it run?", and how the methods are offered then."""

from functools import cache

import gradio as gr

from backend.quantize import METHODS
from backend.quantize.targets import TARGETS, UNSURE, Offer, offers


def build_target() -> gr.Radio:
    """Build the question inside the open Blocks."""
    choices = [(target.title, name) for name, target in TARGETS.items()]
    return gr.Radio(
        choices, value=UNSURE, label="Where will it run?", elem_id="target", elem_classes=["pills"],
        info="What suits it comes first. All methods can be chosen.",
    )  # fmt: skip


@cache
def offered(target: str) -> tuple[Offer, ...]:
    """Return all methods, in the order in which they are offered to who has answered so."""
    return tuple(offers(TARGETS[target]))


def choices(target: str) -> list[tuple[str, str]]:
    """Return the methods as a list shows them: their titles, and what each gives there or why it does not run there."""
    return [(f"{METHODS[offer.method].title}\n{_about(offer)}", offer.method) for offer in offered(target)]


def _about(offer: Offer) -> str:
    if offer.reading and offer.reading.refusal:
        return f"Does not run there: {offer.words}"
    between = " " if offer.reading else "\n"
    return f"{METHODS[offer.method].summary}{between}{offer.words}".strip()
