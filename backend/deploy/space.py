"""Space: what deploying would make and cost, and the deploying itself: the Space, one commit, its settings."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, JobHardwareInfo, Volume
from huggingface_hub.hf_api import SpaceInfo
from pydantic import Field

from backend import __version__
from backend.deploy.files import DOCKER_PARTS, PARTS, README, TAG, is_in, space_files
from backend.deploy.options import FREE_HARDWARE, DeployOptions
from backend.errors import AppError, LoginError, SpecError
from backend.hub import client
from backend.hub.errors import DEPLOYING, TAKEN, refused, translated
from backend.hub.pages import PRICING_PAGE
from backend.hub.transport import endpoint
from backend.options import Frozen
from backend.publish.destination import HUBS_OWN

_FAULTS = (httpx2.HTTPError, OSError, ValueError, RuntimeError)  # of huggingface_hub, each in its own dress


class Plan(Frozen):
    """What deploying would do, known before anything is made."""

    options: DeployOptions
    parent: str | None = Field(None, description="The commit of the Space that is updated; None: it is made.")
    sdk: str = Field(description="gradio or docker.")
    hardware: str = Field(description="What it will run on.")
    price: str = Field(description="What that costs now, as the Hub says: $0.40 an hour.")

    @property
    def words(self) -> str:
        """Say what would be made, and what it costs."""
        options, private = self.options, "private" if self.options.private else "public"
        what = "Updates" if self.parent else f"Makes the {private} {self.sdk} Space"
        parts = [f"{what} {options.repo_id} on {self.hardware}: {self.price}{self._until}."]
        if self.parent is None:
            parts.append(
                "A Gradio or Docker Space needs a paid plan (PRO, Team or Enterprise), paid hardware a payment method"
                " with credits."
            )
        if self.sdk == "docker" and self.hardware.startswith("cpu-"):
            parts.append("vLLM needs a GPU there; without one, transformers answers.")
        return " ".join([*parts, f"Prices change: see {PRICING_PAGE}"])

    @property
    def _until(self) -> str:
        if self.price == FREE:
            return ""
        seconds = self.options.sleep_time
        return f" until {seconds} s after its last visitor" if seconds else ", used or not, until you pause it"


FREE = "free"


class Deployed(Frozen):
    """Where the app went."""

    location: str = Field(description="The Space's address.")
    commit: str = Field(description="The commit that holds the app.")
    files: tuple[str, ...]


def plan(options: DeployOptions, token: str | None) -> Plan:
    """Find out what deploying would make and cost.

    Raises:
        SpecError: The name is taken, or the Hub has no such hardware.
        LoginError: There is no token, or it is a wrong one.
        HubError: The Hub could not be asked.
    """
    if not token:
        raise LoginError(f"{_could_not(options)} There is no token: sign in with `hf auth login`, or set HF_TOKEN.")
    _secrets(options)
    space, info = options.repo_id, None
    if client.ask(lambda: client.api(token).repo_exists(space, repo_type="space"), space, token):
        info = client.ask(lambda: client.api(token).space_info(space), space, token)
        if not _is_ours(info):
            raise SpecError(f"{_could_not(options)} {TAKEN}")
    hardware = options.hardware or (info and _hardware(info)) or FREE_HARDWARE
    if hardware == FREE_HARDWARE and options.sleep_time is not None:
        raise SpecError(f"{_could_not(options)} {FREE_HARDWARE} always sleeps after 48 hours: leave out sleep_time.")
    listed = client.ask(lambda: client.api(token).list_spaces_hardware(), space, token)
    found = next((item for item in listed if item.name == hardware), None)
    if found is None:
        names = ", ".join(item.name for item in listed)
        raise SpecError(f"{_could_not(options)} The Hub has no hardware '{hardware[:80]}': choose from {names}.")
    sdk = options.sdk or (info and info.sdk) or "gradio"
    return Plan(options=options, parent=info and info.sha, sdk=sdk, hardware=hardware, price=_price(found))


def deploy(plan: Plan, token: str) -> Deployed:
    """Make or update the Space as planned: its files in one commit, then its settings.

    Raises:
        AppError: The Hub refuses or cannot be reached; what to do.
    """
    options = plan.options
    api, files = client.api(token), space_files(plan.sdk, plan.hardware)
    if options.bucket:
        _write(options, lambda: api.create_bucket(options.bucket or "", private=True, exist_ok=True))
    parent = plan.parent
    if parent is None:
        _write(options, lambda: api.create_repo(options.repo_id, repo_type="space", **_at_creation(plan)))
    info = client.ask(lambda: api.space_info(options.repo_id), options.repo_id, token)
    there = [sibling.rfilename for sibling in info.siblings or []]
    old = [name for name in there if name not in files and any(is_in(name, part) for part in (*PARTS, *DOCKER_PARTS))]
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(name, data) for name, data in files.items()),
        *(CommitOperationDelete(name) for name in old),
    ]
    commit = _write(
        options,
        lambda: api.create_commit(
            options.repo_id,
            operations,
            repo_type="space",
            commit_message=f"Deploy Weightsmith {__version__}",
            parent_commit=parent or info.sha,
        ),
    )
    if parent is not None:
        _update(options, token)
    return Deployed(location=f"{endpoint()}/spaces/{options.repo_id}", commit=commit.oid, files=tuple(sorted(files)))


def _at_creation(plan: Plan) -> dict[str, Any]:
    """Return what is set in the call that makes the Space, so that it never runs without."""
    options = plan.options
    return {
        "private": options.private,
        "space_sdk": plan.sdk,
        "space_hardware": options.hardware,
        "space_sleep_time": options.sleep_time,
        "space_secrets": [{"key": name, "value": value} for name, value in _secrets(options).items()] or None,
        "space_variables": [{"key": name, "value": value} for name, value in _variables(options).items()] or None,
        "space_volumes": _volumes(options) or None,
    }


def _update(options: DeployOptions, token: str) -> None:
    """Set what was asked for, on a Space that is there; the hardware last, for it costs."""
    api, space = client.api(token), options.repo_id
    changes: list[Callable[[], Any]] = [
        *(partial(api.add_space_secret, space, *item) for item in _secrets(options).items()),
        *(partial(api.add_space_variable, space, *item) for item in _variables(options).items()),
    ]
    if options.bucket:
        changes.append(partial(api.set_space_volumes, space, _volumes(options)))
    if options.hardware:
        asked = {"hardware": options.hardware, "sleep_time": options.sleep_time}
        changes.append(partial(api.request_space_hardware, space, **asked))  # type: ignore[arg-type]
    elif options.sleep_time is not None:
        changes.append(partial(api.set_space_sleep_time, space, options.sleep_time))
    for change in changes:
        _write(options, change)


def _variables(options: DeployOptions) -> dict[str, str]:
    return dict(value.partition("=")[::2] for value in options.variables)


def _secrets(options: DeployOptions) -> dict[str, str]:
    if absent := next((name for name in options.secrets if name not in os.environ), None):
        raise SpecError(f"secrets: {absent} has no value here: set it in the environment.")
    return {name: os.environ[name] for name in options.secrets}


def _volumes(options: DeployOptions) -> list[Volume]:
    return [Volume(type="bucket", source=options.bucket, mount_path="/data")] if options.bucket else []


def _is_ours(info: SpaceInfo) -> bool:
    """Return whether a Space holds this app, or nothing yet."""
    held = {sibling.rfilename for sibling in info.siblings or []}
    tags = (info.card_data and info.card_data.tags) or []
    return held <= {*HUBS_OWN, README} or TAG in tags


def _hardware(info: SpaceInfo) -> str | None:
    runtime = info.runtime
    return (runtime.requested_hardware or runtime.hardware) if runtime else None


def _price(hardware: JobHardwareInfo) -> str:
    if not hardware.unit_cost_usd:
        return FREE
    if hardware.unit_label == "minute":
        return f"${60 * hardware.unit_cost_usd:.2f} an hour"
    return f"${hardware.unit_cost_usd:.2f} per {hardware.unit_label}"


def _write(options: DeployOptions, request: Callable[[], Any]) -> Any:
    """Send one request that changes something; a refusal becomes a sentence."""
    try:
        return request()
    except _FAULTS as e:
        raise _refusal(options, e) from e


def _refusal(options: DeployOptions, error: Exception) -> AppError:
    meant = refused(DEPLOYING, error, options.repo_id, "token") or translated(error, options.repo_id, "token")
    return type(meant)(f"{_could_not(options)} {meant}")


def _could_not(options: DeployOptions) -> str:
    return f"Could not deploy to '{options.repo_id}'."
