"""Destination: whether an artifact can go where it is to go, known before anything long or lasting is done."""

from pathlib import Path

from huggingface_hub.hf_api import ModelInfo

from backend.errors import LoginError, SpecError
from backend.hub import client
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
    if client.ask(lambda: client.api(token).repo_exists(repo_id), repo_id, token):
        info = client.model_info(repo_id, None, token)
        if not (is_empty(info) and bool(info.private) == options.private):
            raise taken(repo_id)


def check_folder(target: Path) -> None:
    """Refuse a folder that holds something, or that cannot be."""
    try:
        free = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    except OSError as e:
        raise SpecError(f"Could not publish to '{str(target)[:120]}'. {e.strerror}: choose another folder.") from e
    if not free:
        raise SpecError(f"Could not publish to '{target}'. It exists already and is not empty: choose another folder.")


def check_token(options: PublishOptions, token: str | None) -> tuple[str, str]:
    """Give the repo id and the token, if it is one of somebody who may have repos in that namespace."""
    assert options.repo_id
    could_not = f"Could not publish to '{options.repo_id}'."
    if not token:
        raise LoginError(f"{could_not} There is no token: sign in with `hf auth login`, or set HF_TOKEN.")
    who = client.ask(lambda: client.api(token).whoami(), options.repo_id, token)
    user, namespace = str(who.get("name")), options.repo_id.split("/")[0]
    if (who.get("auth") or {}).get("accessToken", {}).get("role") == "read":
        raise LoginError(f"{could_not} The token of '{user}' may only read: make one that may write at {TOKENS_PAGE}")
    own = [user, *(str(org.get("name")) for org in who.get("orgs") or [])]
    if namespace not in own:
        raise SpecError(f"{could_not} '{user}' does not belong to '{namespace}': choose from {', '.join(own)}.")
    return options.repo_id, token


def is_empty(info: ModelInfo) -> bool:
    """Whether a repo holds nothing but what the Hub put into it."""
    return {sibling.rfilename for sibling in info.siblings or []} <= HUBS_OWN


def taken(repo_id: str) -> SpecError:
    """Say that a name is taken."""
    return SpecError(f"Could not publish to '{repo_id}'. It exists already: choose another name.")
