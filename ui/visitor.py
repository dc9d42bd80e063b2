"""Visitor: who asks, worked out once per event: the owner of jobs, and the caller's Hub token."""

import functools
import inspect
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.blocks import Block
from huggingface_hub import get_token
from starlette.types import Scope

from backend.errors import LoginError
from backend.settings import Settings
from ui.kit.errors import Handler, shown

LOCAL = "local"  # on one's own machine there is one user

Profile = Mapping[str, Any]
"""What the Hub says of who has signed in; gr.OAuthProfile is one."""


@dataclass(frozen=True)
class Visitor:
    """Who asks.

    Attributes:
        settings: Of the machine's owner.
        owner: Whose jobs are the visitor's; None for an anonymous visitor. It is the profile's `sub`, which never
            changes, while a user name can be given up and taken by somebody else.
        may_run: Whether they may use the machine: on a Space its members, by their own name or an organization's.
        signed_in: The token of their sign-in, on a Space.
    """

    settings: Settings
    owner: str | None
    may_run: bool
    signed_in: str | None = None

    def known(self) -> str:
        """Return the owner, for what only a known user may do.

        Raises:
            LoginError: Nobody is signed in.
        """
        if self.owner:
            return self.owner
        if can_sign_in():
            raise LoginError("Jobs belong to an account: sign in with Hugging Face, at the top of the page.")
        raise LoginError("This Space has no sign-in, so nobody can run jobs: set `hf_oauth: true` in its README.")

    def member(self) -> str:
        """Return the owner, for what takes the machine's time: jobs, models that are loaded.

        Raises:
            LoginError: Nobody is signed in, or the Space lets others run jobs.
        """
        owner = self.known()
        if self.may_run:
            return owner
        space = f"https://huggingface.co/spaces/{os.environ['SPACE_ID']}?duplicate=true"
        raise LoginError(
            f"Only {', '.join(self.settings.members) or 'nobody'} may run jobs on this Space: duplicate it, {space}"
        )

    def token(self, typed: str | None = None) -> str | None:
        """Return the token; the machine owner's own one is used on their own machine only.

        Args:
            typed: From the password box, which a Space does not have.
        """
        if alone(self.settings):
            return (typed or "").strip() or get_token()
        return self.signed_in


def visitor(settings: Settings, profile: Profile | None, token: str | None = None) -> Visitor:
    """Return who asks, from what the Hub says of who has signed in."""
    if alone(settings):
        return Visitor(settings, LOCAL, may_run=True)
    if not profile:
        return Visitor(settings, None, may_run=False)
    names = {profile["preferred_username"], *(org["preferred_username"] for org in profile.get("orgs") or ())}
    members = {"*", *(name.lower() for name in names)} & set(settings.members)
    return Visitor(settings, str(profile["sub"]), bool(members), token)


def visitor_of(settings: Settings, scope: Scope) -> Visitor:
    """Return who sends a request, from the session that Gradio keeps in a signed cookie."""
    session = scope.get("session") or {}
    info = session.get("oauth_info") or {}
    lives = info.get("expires_at") is None or info["expires_at"] > time.time()
    return visitor(settings, info.get("userinfo") if lives else None)


def handler(settings: Settings, beside: gr.HTML | None = None, *hidden: Block) -> Callable[[Handler], Handler]:
    """Hand the visitor to an event's handler, as `who`, and show its AppError on the page.

    Args:
        settings: Of the machine's owner.
        beside: As in shown().
        hidden: As in shown().
    """

    def decorate(function: Handler) -> Handler:
        signature = _for_gradio(function)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs)
            profile = given.arguments.pop("profile")
            oauth = given.arguments.pop("oauth")
            return function(*given.args, who=visitor(settings, profile, oauth.token if oauth else None))

        call.__signature__ = signature  # type: ignore[attr-defined]
        call.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
        return shown(beside, *hidden)(call)

    return decorate


def _for_gradio(function: Handler) -> inspect.Signature:
    """Return the signature by which Gradio knows what to pass: who has signed in, last, in place of the visitor."""
    signature = inspect.signature(function)
    kept = [parameter for name, parameter in signature.parameters.items() if name != "who"]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    profile = inspect.Parameter("profile", kind, annotation=gr.OAuthProfile | None)
    oauth = inspect.Parameter("oauth", kind, annotation=gr.OAuthToken | None)
    return signature.replace(parameters=[*kept, profile, oauth])


def can_sign_in() -> bool:
    """Return whether a login button can be built: off a Space Gradio has only a mock of it that lets anybody in."""
    return "SPACE_ID" in os.environ and "OAUTH_CLIENT_ID" in os.environ


def alone(settings: Settings) -> bool:
    """Return whether only the machine's owner uses the page, who may name its folders."""
    return not settings.on_space


def require_alone(settings: Settings) -> None:
    """Refuse on a Space what changes the machine itself or uses its folders.

    Raises:
        LoginError: This is a Space.
    """
    if not alone(settings):
        raise LoginError(
            "This is possible on your own machine only: on a Space, its owner does it by changing what the Space is"
            " built from."
        )
