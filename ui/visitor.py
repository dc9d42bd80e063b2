"""Who is using the page: the owner of jobs, and the token that speaks to the Hub for them."""

import os
import time
from collections.abc import Mapping
from typing import Any

import gradio as gr
from huggingface_hub import get_token
from starlette.types import Scope

from backend.errors import LoginError
from backend.settings import Settings

LOCAL = "local"  # on one's own machine there is one user

Profile = Mapping[str, Any]
"""What the Hub says of who has signed in; gr.OAuthProfile is one."""


def can_sign_in() -> bool:
    """Whether a login button can be built: off a Space Gradio has only a mock of it, where anybody can be anybody."""
    return "SPACE_ID" in os.environ and "OAUTH_CLIENT_ID" in os.environ


def alone(settings: Settings) -> bool:
    """Whether only the machine's owner uses the page, who may name its folders."""
    return not settings.on_space


def profile_of(scope: Scope) -> Profile | None:
    """Give who has signed in, from the session that Gradio keeps in a signed cookie."""
    session = scope.get("session") or {}
    info = session.get("oauth_info") or {}
    lives = info.get("expires_at") is None or info["expires_at"] > time.time()
    return info.get("userinfo") if lives else None


def visitor(settings: Settings, profile: Profile | None) -> str | None:
    """Give the owner of the visitor's jobs, or None for an anonymous visitor.

    The profile's `sub` never changes, while a user name can be given up and taken by somebody else.
    """
    if alone(settings):
        return LOCAL
    return str(profile["sub"]) if profile else None


def require_owner(settings: Settings, profile: Profile | None) -> str:
    """Give the owner, for what only a known user may do.

    Raises:
        LoginError: Nobody is signed in.
    """
    owner = visitor(settings, profile)
    if owner:
        return owner
    if can_sign_in():
        raise LoginError("Jobs belong to an account: sign in with Hugging Face, at the top of the page.")
    raise LoginError("This Space has no sign-in, so nobody can run jobs: set `hf_oauth: true` in its README.")


def may_run(settings: Settings, profile: Profile | None) -> bool:
    """Whether a visitor may use the machine: on a Space its members, by their own name or an organization's."""
    if alone(settings):
        return True
    if not profile:
        return False
    names = {profile["preferred_username"], *(org["preferred_username"] for org in profile.get("orgs") or ())}
    return bool({"*", *(name.lower() for name in names)} & set(settings.members))


def require_member(settings: Settings, profile: Profile | None) -> str:
    """Give the owner, for what takes the machine's time: jobs, models that are loaded.

    Raises:
        LoginError: Nobody is signed in, or the Space lets others run jobs.
    """
    owner = require_owner(settings, profile)
    if may_run(settings, profile):
        return owner
    space = f"https://huggingface.co/spaces/{os.environ['SPACE_ID']}?duplicate=true"
    raise LoginError(
        f"Only {', '.join(settings.members) or 'nobody'} may run jobs on this Space: duplicate it, {space}"
    )


def require_alone(settings: Settings) -> None:
    """Refuse what changes the machine itself, or is done with folders of it, where others use it, too.

    Raises:
        LoginError: This is a Space.
    """
    if not alone(settings):
        raise LoginError(
            "This is done on one's own machine alone: on a Space its owner does it, by what it is built from."
        )


def hub_token(settings: Settings, oauth: gr.OAuthToken | None, typed: str | None = None) -> str | None:
    """Give the visitor's token; the machine owner's own one is used on their own machine only.

    Args:
        settings: Says whether strangers use this process.
        oauth: From the login, on a Space.
        typed: From the password box, elsewhere.
    """
    if alone(settings):
        return (typed or "").strip() or get_token()
    return oauth.token if oauth else None
