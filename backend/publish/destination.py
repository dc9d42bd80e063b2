"""Destination: whether an artifact can go where it is to go, known before anything long or lasting is done."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.errors import AppError, HubError, LoginError, SpecError
from backend.hub.ids import parse_repo_id
from backend.hub.pages import TOKENS_PAGE
from backend.hub.patience import HASTY, Patience, status
from backend.publish.card.licenses import fitting
from backend.publish.options import PublishOptions
from backend.publish.storage import shortage

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

HUBS_OWN = {".gitattributes"}
"""What the Hub puts into a repo that it makes."""


def choices(name: str, licenses: Iterable[str], token: str | None) -> list[str]:
    """Return the repo ids that a model can go to, one in each namespace of the token's; none where nobody can tell.

    The Hub is asked once for each token: it answers this question seldom.

    Args:
        name: Of the model; what a repo id cannot hold is taken out.
        licenses: Ids of those under which the model is passed on, which may ask how its name begins.
        token: Of who chooses.
    """
    from huggingface_hub import whoami

    from backend.hub import client

    if not token:
        return []
    try:
        who = client.ask(lambda: whoami(token, cache=True), name, token, HASTY)
    except AppError:
        return []
    possible = re.sub(r"([-.])\1+", r"\1", re.sub(r"[^A-Za-z0-9._-]+", "-", name)).strip("-._")
    found = []
    for namespace in namespaces(who):
        try:
            found.append(parse_repo_id(f"{namespace}/{fitting(possible, licenses)}", namespaced=True))
        except ValueError:
            continue  # too long with this namespace, or nothing was left of the name
    return found


def namespaces(who: Mapping[str, Any]) -> list[str]:
    """Name where somebody may make repos, from what the Hub says of them: under their own name first."""
    if _access(who).get("role") == "read":
        return []
    return [str(who.get("name")), *(org for org, role in _roles(who).items() if role not in ("read", "no_access"))]


def check_destination(
    options: PublishOptions,
    token: str | None,
    to_come: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """Refuse a destination that is taken, or a token that may not write there; asked before a long job starts.

    Args:
        options: Where it is to go.
        token: Of who publishes.
        to_come: Bytes that are to go there, and to other repos in that namespace; 0 where that was asked already.
        tell: Receives a word if a free account's storage may be too small for them.

    Raises:
        SpecError, LoginError, HubError: As publish() does.
    """
    from backend.hub import client

    if options.to_folder is not None:
        return check_folder(options.to_folder)
    repo_id, token = check_token(options, token)
    if client.ask(lambda: client.api(token).repo_exists(repo_id), repo_id, token):
        info = client.model_info(repo_id, None, token)
        if not (options.update or can_take(info, options)):
            raise taken(repo_id, client.commit_of(info, repo_id))
        if not (info.private or options.private):
            return  # it takes no private storage
    if to_come and (warning := shortage(repo_id.split("/")[0], to_come, token)):
        tell(warning)


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
    """Return the repo id and the token, if it is one of somebody who may have repos in that namespace."""

    from backend.hub import client

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
    user = str(who.get("name"))
    namespace = options.repo_id.split("/")[0]
    allowed = namespaces(who)
    if not allowed:
        raise LoginError(f"{could_not} The token of '{user}' may only read: make one that may write at {TOKENS_PAGE}")
    if namespace in allowed:
        return options.repo_id, token
    if namespace in _roles(who):
        raise HubError(f"{could_not} {_no_rights(namespace)}")
    raise SpecError(f"{could_not} '{user}' does not belong to '{namespace}': choose from {', '.join(allowed)}.")


def can_take(info: "ModelInfo", options: PublishOptions) -> bool:
    """Return whether an existing repo can be taken as if it were new: it is empty, and nobody else sees it unasked."""
    return is_empty(info) and (bool(info.private) or options.private is False)


def is_empty(info: "ModelInfo") -> bool:
    """Return whether a repo holds nothing but what the Hub put into it."""
    return {sibling.rfilename for sibling in info.siblings or []} <= HUBS_OWN


def taken(repo_id: str, commit: str) -> SpecError:
    """Say that a name is taken, and by what."""
    return SpecError(
        f"Could not publish to '{repo_id}'. It exists already, with commit {commit[:8]}: choose another name, or ask"
        " for an update of it (update)."
    )


def forbidden(repo_id: str, token: str) -> tuple[str, type[HubError]]:
    """Say why the Hub lets nobody write with this token there, and the link where that can be changed."""

    from backend.hub import client

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
    """Return the role in each organization."""
    return {str(org.get("name")): str(org.get("roleInOrg")) for org in who.get("orgs") or []}


def _access(who: Mapping[str, Any]) -> Mapping[str, Any]:
    return (who.get("auth") or {}).get("accessToken") or {}
