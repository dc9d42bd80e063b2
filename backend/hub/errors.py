"""What the Hub's refusals mean: HTTP status → sentence, for reading, publishing and deploying."""

import errno
import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx2
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from backend.errors import AppError, HardwareError, HubError, LoginError, SpecError
from backend.hub.pages import BILLING_PAGE, LIMITS_PAGE, PRICING_PAGE, TOKENS_PAGE
from backend.hub.patience import cause, retry_after, status
from backend.hub.transport import endpoint


class Meaning(NamedTuple):
    """What a refusal means: the first row of a table that fits says it.

    Attributes:
        answer: The HTTP status; None where the Hub did not answer; or the class of the error.
        kind: What is raised.
        sentence: With the fields that `refused()` fills in.
        said: What the Hub says with it; no address has a space in it.
        signed_in: Whether it was asked with a token, where that decides.
    """

    answer: int | type[Exception] | None
    kind: type[AppError]
    sentence: str
    said: str = ""
    signed_in: bool | None = None


READING = (
    Meaning(
        GatedRepoError,
        LoginError,
        "'{repo_id}' is gated and you are not signed in: sign in, then ask for access at {page}",
        signed_in=False,
    ),
    Meaning(
        GatedRepoError,
        LoginError,
        "Your token may not read gated repos such as '{repo_id}': allow it in the token's settings on the Hub.",
        said="fine-grained",
    ),
    Meaning(GatedRepoError, HubError, "Access to '{repo_id}' has not been granted to you: ask for it at {page}"),
    Meaning(
        401,
        LoginError,
        "'{repo_id}' does not exist, or it is private and you are not signed in: check the name, or sign in.",
        signed_in=False,
    ),
    Meaning(401, LoginError, "Your token for the Hub is wrong or has expired: sign in again, or give a new token."),
    Meaning(DisabledRepoError, HubError, "'{repo_id}' has been disabled by the Hub: choose another."),
    Meaning(RevisionNotFoundError, HubError, "'{repo_id}' has no such revision: give a branch, tag or commit of it."),
    Meaning(RemoteEntryNotFoundError, HubError, "A file of '{repo_id}' is not there any more: look it up again."),
    Meaning(
        RepositoryNotFoundError,
        HubError,
        "'{repo_id}' does not exist, or you have no access to it: check the name, or ask its owner.",
    ),
    Meaning(
        404, HubError, "'{repo_id}' does not exist, or you have no access to it: check the name, or ask its owner."
    ),
    Meaning(403, LoginError, "Your token may not read '{repo_id}': give a token with read access to it."),
    Meaning(429, HubError, "The Hub is asked too often: try again in {wait}."),
    Meaning(HfHubHTTPError, HubError, "The Hub answered {status} for '{repo_id}': try again in a few minutes."),
    Meaning(
        OfflineModeIsEnabled,
        HubError,
        "The Hub cannot be asked while HF_HUB_OFFLINE is set: unset it, or use what lies here.",
    ),
    Meaning(
        httpx2.TransportError,
        HubError,
        "The Hub at {host} cannot be reached: check the network and HF_ENDPOINT, then try again.",
    ),
    Meaning(
        Exception,
        HubError,
        "What answered for '{repo_id}' at {host} is not the Hub, or is out of order: check HF_ENDPOINT, or try again.",
    ),
)

PUBLISHING = (
    Meaning(GatedRepoError, HubError, "It is gated, and you have not been let in: ask for access at {page}"),
    Meaning(
        403,
        HubError,
        f"The private storage of '{{namespace}}' is full: {LIMITS_PAGE} says how to free some or to have more, then"
        " publish again: what has arrived is not sent twice.",
        said="storage limit",
    ),
    Meaning(
        403,
        HubError,
        "The Hub takes no more files of '{namespace}' before somebody there has looked at the account: write to"
        " website@huggingface.co, then publish again: what has arrived is not sent twice.",
        said="storage patterns",
    ),
    Meaning(
        404,
        HubError,
        "The Hub does not find it: it was deleted or renamed meanwhile, or your token may not see it. Look at {page},"
        " then publish again.",
    ),
    Meaning(
        402,
        HubError,
        f"The Hub wants a paid plan or more storage for it: see {BILLING_PAGE}",
    ),
    Meaning(413, HubError, "The Hub finds a file too large: make smaller shards."),
    Meaning(409, HubError, "The Hub answered 409, as if something else were there: look at it, or try again."),
    Meaning(412, HubError, "The Hub answered 412, as if something else were there: look at it, or try again."),
    Meaning(400, HubError, "The Hub does not accept it: {said}"),
    Meaning(None, HubError, "The Hub does not accept it: {said}", said=r"README\.md"),
    # hf_xet's
    Meaning(PermissionError, LoginError, "Your token for the Hub has expired, or may not write there: sign in again."),
)
"""What is not in it means what it means in reading; why a token may not write is asked for, see destination.py."""

TAKEN = "It exists already and holds something else: choose another name."

DEPLOYING = (
    Meaning(
        402,
        HubError,
        "The Hub wants a paid plan (PRO, Team or Enterprise) for it, or a payment method with credits for its"
        f" hardware: see {PRICING_PAGE}",
    ),
    Meaning(
        403,
        LoginError,
        "You may not make or change Spaces there with this sign-in: give a token with write access, from"
        f" {TOKENS_PAGE}, or choose a namespace of yours.",
    ),
    Meaning(409, SpecError, TAKEN),
    Meaning(412, HubError, "Somebody else has changed it meanwhile: deploy again."),
    Meaning(400, HubError, "The Hub does not accept it: {said}"),
)
"""What is not in it means what it means in reading."""


def refused(table: Iterable[Meaning], error: Exception, repo_id: str, token: str | None) -> AppError | None:
    """Return what an error means by the first row of a table that fits; None where none does.

    Args:
        table: One of those above.
        error: What huggingface_hub or hf_xet raised.
        repo_id: What it is about.
        token: What the Hub was asked with.
    """
    found = cause(error)
    told = found.response.headers.get("X-Error-Message") or "" if isinstance(found, HfHubHTTPError) else ""
    for row in table:
        if isinstance(row.answer, type):
            fits = isinstance(found, row.answer) or isinstance(error, row.answer)
        else:
            fits = status(error) == row.answer
        if not fits or row.signed_in not in (None, token is not None):
            continue
        if re.search(row.said, f"{told} {found}", re.IGNORECASE):
            return row.kind(row.sentence.format(**_fields(error, repo_id)))
    return None


def translated(error: Exception, repo_id: str, token: str | None) -> AppError:
    """Put an error of huggingface_hub into a sentence that names the repo and says what to do."""
    found = cause(error)
    if isinstance(found, OSError) and found.errno in (errno.ENOSPC, errno.EDQUOT):
        return HardwareError(f"The disk became full while '{repo_id}' was downloaded: free some space and try again.")
    meant = refused(READING, error, repo_id, token)
    assert meant  # its last row fits all
    return meant


def _fields(error: Exception, repo_id: str) -> dict[str, str]:
    found = cause(error)
    after = retry_after(found) if isinstance(found, HfHubHTTPError) else None
    return {
        "repo_id": repo_id,
        "namespace": repo_id.split("/")[0],
        "page": f"{endpoint()}/{repo_id}",
        "host": urlsplit(endpoint()).netloc,
        "said": " ".join(str(error).split())[:300],
        "status": str(status(error)),
        "wait": "five minutes" if after is None else f"{after:.0f} seconds",
    }
