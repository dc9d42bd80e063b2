"""Refusals: what the Hub says to a write, put into words that say where it stopped and what to do."""

import json
import re

import httpx2
from huggingface_hub.errors import GatedRepoError

from backend.errors import AppError, HubError, LoginError
from backend.hub import client
from backend.hub.patience import cause, status
from backend.hub.transport import endpoint
from backend.publish.destination import forbidden
from backend.publish.storage import LIMITS_PAGE

_FULL, _STOPPED = re.compile("storage limit", re.IGNORECASE), re.compile("storage patterns", re.IGNORECASE)
"""What the Hub says with status 403 where the token is not at fault; no address has a space in it."""


def refusal(error: Exception, repo_id: str, token: str) -> tuple[str, type[AppError]]:
    """Give the words for a refused write, and the kind of error that they are.

    Args:
        error: What huggingface_hub or hf_xet raised.
        repo_id: What was written to.
        token: Of who wrote.
    """
    namespace = repo_id.split("/")[0]
    said, answer = " ".join(str(error).split())[:300], str(cause(error))
    if isinstance(cause(error), GatedRepoError):
        return f"It is gated, and you have not been let in: ask for access at {endpoint()}/{repo_id}", HubError
    match status(error):
        case 403 if _FULL.search(answer):
            return (
                f"The private storage of '{namespace}' is full: {LIMITS_PAGE} says how to free some or to have more,"
                " then publish again: what has arrived is not sent twice.",
                HubError,
            )
        case 403 if _STOPPED.search(answer):
            return (
                f"The Hub takes no more files of '{namespace}' before somebody there has looked at the account: write"
                " to website@huggingface.co, then publish again: what has arrived is not sent twice.",
                HubError,
            )
        case 403:
            return forbidden(repo_id, token)
        case 404:
            return (
                "The Hub does not find it: it was deleted or renamed meanwhile, or your token may not see it. Look at"
                f" {endpoint()}/{repo_id}, then publish again.",
                HubError,
            )
        case 402:
            return (
                "The Hub wants a paid plan or more storage for it: see https://huggingface.co/settings/billing",
                HubError,
            )
        case 413:
            return "The Hub finds a file too large: make smaller shards.", HubError
        case 409 | 412 as answered:
            return f"The Hub answered {answered}, as if something else were there: look at it, or try again.", HubError
        case 400:
            return f"The Hub does not accept it: {said}", HubError
        case None if "README.md" in said:
            return f"The Hub does not accept it: {said}", HubError
    if isinstance(error, PermissionError):  # hf_xet's
        return "Your token for the Hub has expired, or may not write there: sign in again.", LoginError
    found = client.translated(error, repo_id, token)
    return str(found), type(found)


def unsure(error: Exception) -> bool:
    """Whether what was asked may have been done: no reply, a server's fault, or a reply that is none."""
    answered = status(error)
    if answered is not None:
        return answered == 429 or answered >= 500
    return isinstance(cause(error), httpx2.TransportError | json.JSONDecodeError)
