"""Destination: whether an artifact can go where it is to go, known before anything long or lasting is done."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.hf_api import ModelInfo

from backend.errors import HubError, LoginError, SpecError
from backend.hub import client
from backend.hub.patience import Patience, status
from backend.publish import PublishOptions

HUBS_OWN = {".gitattributes"}
"""What the Hub puts into a repo that it makes."""

TOKENS_PAGE = "https://huggingface.co/settings/tokens"


def check_destination(options: PublishOptions, token: str | None) -> None:
    """Refuse a destination that is taken, or a token that may not write there; asked before a long job starts.

    Raises:
        SpecError, LoginError, HubError: As publish() does.
    """
    if options.to_folder is not None:
        return check_folder(options.to_folder)
    repo_id, token = check_token(options, token)
    if not client.ask(lambda: client.api(token).repo_exists(repo_id), repo_id, token):
        return
    info = client.model_info(repo_id, None, token)
    if not (options.update or can_take(info, options)):
        raise taken(repo_id, client.commit_of(info, repo_id))


def check_folder(target: Path) -> None:
    """Refuse a folder that holds something, or that cannot be."""
    try:
        free = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    except OSError as e:
        raise SpecError(f"Could not publish to '{str(target)[:120]}'. {e.strerror}: choose another folder.") from e
    if not free:
        raise SpecError(f"Could not publish to '{target}'. It exists already and is not empty: choose another folder.")


def check_outside(options: PublishOptions, folder: Path) -> None:
    """Refuse a folder within the one that is published."""
    if options.to_folder and options.to_folder.resolve().is_relative_to(folder.resolve()):
        raise SpecError(
            f"Could not publish to '{options.to_folder}'. It lies within what is published: choose another folder."
        )


def check_token(options: PublishOptions, token: str | None, patience: Patience | None = None) -> tuple[str, str]:
    """Give the repo id and the token, if it is one of somebody who may have repos in that namespace."""
    assert options.repo_id
    could_not = f"Could not publish to '{options.repo_id}'."
    if not token:
        raise LoginError(f"{could_not} There is no token: sign in with `hf auth login`, or set HF_TOKEN.")
    try:
        who = client.ask(lambda: client.api(token).whoami(), options.repo_id, token, patience)
    except HubError as e:
        answered = status(e.__cause__) if isinstance(e.__cause__, Exception) else None
        if answered in (403, 404):
            raise LoginError(f"{could_not} The Hub does not say whose token this is: make one at {TOKENS_PAGE}") from e
        raise type(e)(f"{could_not} {e}") from e
    user, namespace = str(who.get("name")), options.repo_id.split("/")[0]
    if _access(who).get("role") == "read":
        raise LoginError(f"{could_not} The token of '{user}' may only read: make one that may write at {TOKENS_PAGE}")
    roles = _roles(who)
    if namespace not in (user, *roles):
        raise SpecError(
            f"{could_not} '{user}' does not belong to '{namespace}': choose from {', '.join([user, *roles])}."
        )
    if roles.get(namespace) in ("read", "no_access"):
        raise HubError(f"{could_not} {_no_rights(namespace)}")
    return options.repo_id, token


def can_take(info: ModelInfo, options: PublishOptions) -> bool:
    """Whether a repo that exists can be taken as if it were new: it is empty, and nobody else sees it unasked."""
    return is_empty(info) and (bool(info.private) or options.private is False)


def is_empty(info: ModelInfo) -> bool:
    """Whether a repo holds nothing but what the Hub put into it."""
    return {sibling.rfilename for sibling in info.siblings or []} <= HUBS_OWN


def taken(repo_id: str, commit: str) -> SpecError:
    """Say that a name is taken, and by what."""
    return SpecError(
        f"Could not publish to '{repo_id}'. It exists already, with commit {commit[:8]}: choose another name, or ask"
        " for an update of it (update)."
    )


def forbidden(repo_id: str, token: str) -> tuple[str, type[HubError]]:
    """Say why the Hub lets nobody write with this token there, and the link where that can be changed."""
    namespace = repo_id.split("/")[0]
    try:
        who = client.ask(lambda: client.api(token).whoami(), repo_id, token)
    except HubError:
        who = {}
    if namespace in _roles(who) and _access(who).get("role") == "write":  # of a token without limits of its own
        return _no_rights(namespace), HubError
    if (who.get("auth") or {}).get("type") == "oauth":
        return (
            "Your sign-in was not allowed to write there: sign out and in again and allow it, or look at"
            " https://huggingface.co/settings/connected-applications",
            LoginError,
        )
    return f"Your token may not write there: allow it at {TOKENS_PAGE}, or choose another name.", LoginError


def _no_rights(organization: str) -> str:
    return (
        f"You may not write in the organization '{organization}': ask its admins for that at"
        f" https://huggingface.co/organizations/{organization}/settings/members, or choose another namespace."
    )


def _roles(who: Mapping[str, Any]) -> dict[str, str]:
    """Give the role in each organization."""
    return {str(org.get("name")): str(org.get("roleInOrg")) for org in who.get("orgs") or []}


def _access(who: Mapping[str, Any]) -> Mapping[str, Any]:
    return (who.get("auth") or {}).get("accessToken") or {}
