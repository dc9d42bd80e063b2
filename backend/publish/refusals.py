"""Refusals: what the Hub says to a write, put into words that say where it stopped and what to do."""

import json

import httpx2

from backend.errors import AppError
from backend.hub.errors import PUBLISHING, refused, translated
from backend.hub.patience import cause, status
from backend.publish.destination import forbidden


def refusal(error: Exception, repo_id: str, token: str) -> tuple[str, type[AppError]]:
    """Return the words for a refused write, and the kind of error that they are.

    Args:
        error: What huggingface_hub or hf_xet raised.
        repo_id: What was written to.
        token: The writer's.
    """
    meant = refused(PUBLISHING, error, repo_id, token)
    if meant is None and status(error) == 403:
        return forbidden(repo_id, token)
    meant = meant or translated(error, repo_id, token)
    return str(meant), type(meant)


def unsure(error: Exception) -> bool:
    """Return whether what was asked may have been done: no reply, a server's fault, or an unreadable reply."""
    answered = status(error)
    if answered is not None:
        return answered == 429 or answered >= 500
    return isinstance(cause(error), httpx2.TransportError | json.JSONDecodeError)
