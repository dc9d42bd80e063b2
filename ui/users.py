"""Who is using the page: the owner of jobs, and the token that speaks to the Hub for them."""

import os

import gradio as gr
from huggingface_hub import get_token

from backend.errors import LoginError
from backend.settings import Settings

LOCAL = "local"  # on one's own machine there is one user


def can_sign_in() -> bool:
    """Whether a login button can be built; elsewhere Gradio refuses to build the page with one."""
    return "OAUTH_CLIENT_ID" in os.environ


def alone(settings: Settings) -> bool:
    """Whether only the machine's owner uses the page, who may name its folders."""
    return not (settings.on_space or can_sign_in())


def visitor(settings: Settings, profile: gr.OAuthProfile | None) -> str | None:
    """Give the owner of the visitor's jobs, or None for an anonymous visitor.

    The profile's `sub` never changes, while a user name can be given up and taken by somebody else.
    """
    if alone(settings):
        return LOCAL
    return str(profile["sub"]) if profile else None


def require_owner(settings: Settings, profile: gr.OAuthProfile | None) -> str:
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
