"""The one place where an AppError becomes what a visitor reads."""

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from gradio.blocks import Block

from backend.errors import AppError
from ui.kit.format import escape

Handler = Callable[..., Any]
"""What an event calls; Gradio passes what its inputs hold."""


def shown(beside: gr.HTML | None = None, *hidden: Block) -> Callable[[Handler], Handler]:
    """Let a handler's AppError appear on the page as its own sentence; any other error stays a bug.

    Args:
        beside: Where the sentence is written and stays; the handler must have it as an output, return dictionaries
            and clear it. Without it the sentence pops up.
        hidden: What goes then: it belonged to what was written there before.
    """

    def decorate(handler: Handler) -> Handler:
        if inspect.isgeneratorfunction(inspect.unwrap(handler)):

            @functools.wraps(handler)
            def generate(*args: Any, **kwargs: Any) -> Iterator[Any]:
                try:
                    yield from handler(*args, **kwargs)
                except AppError as e:
                    yield _tell(e, beside, hidden)

            return generate

        @functools.wraps(handler)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return handler(*args, **kwargs)
            except AppError as e:
                return _tell(e, beside, hidden)

        return call

    return decorate


def fault(error: object) -> str:
    """Write what is wrong as it stands beside a field."""
    return f'<p class="fault" role="alert">{_linked(error)}</p>'


def warning(text: object) -> str:
    """Write what somebody should know before it goes wrong."""
    return f'<p class="warn">{_linked(text)}</p>'


def _linked(error: object) -> str:
    """Write a text literally, but for addresses of the Hub: what to do is done there."""
    found = re.compile(r"https://huggingface\.co/[\w./?=&;%-]*[\w/]")
    return found.sub(r'<a href="\g<0>" target="_blank" rel="noopener noreferrer">\g<0></a>', escape(error))


def _tell(error: AppError, beside: gr.HTML | None, hidden: tuple[Block, ...]) -> dict[Block, Any]:
    if beside is not None:
        return {beside: fault(error), **{component: gr.update(visible=False) for component in hidden}}
    # Gradio renders the message as HTML, and names from the Hub or a user may hold some.
    raise gr.Error(_linked(error), duration=12, title="That did not work", print_exception=False) from error
