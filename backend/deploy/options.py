"""DeployOptions: which Space this app becomes, at which hardware and with which settings."""

from collections.abc import Iterable
from typing import Literal, get_args

from pydantic import Field, SecretStr, field_validator, model_validator

from backend.hub.ids import parse_repo_id
from backend.options import ADVANCED, Frozen
from backend.settings import PREFIX, Settings

FREE_HARDWARE = "cpu-basic"
ZERO_GPU = "zero-a10g"

_SETTINGS = {f"{PREFIX}{name.upper()}": field.annotation for name, field in Settings.model_fields.items()}


class DeployOptions(Frozen):
    """A Space of this app; names are those of huggingface_hub's create_repo(), without their `space_`."""

    repo_id: str = Field(description="The Space to make, or to update if it was made so, as namespace/name.")
    sdk: Literal["gradio", "docker"] | None = Field(
        None,
        description="gradio runs everything in one environment, docker adds vLLM for a GPU; by default gradio, and an"
        " update leaves it as it is.",
    )
    hardware: str | None = Field(
        None,
        description=f"The machine, such as t4-small or l4x1; by default {FREE_HARDWARE}, and an update leaves it as it"
        " is.",
    )
    private: bool = Field(True, description="Only you see the new Space; an update leaves that as it is.")
    sleep_time: int | None = Field(
        None,
        ge=1,
        description="Seconds without a visitor after which paid hardware sleeps and costs nothing; by default it never"
        " does. A running job does not keep it awake.",
        json_schema_extra=ADVANCED,
    )
    bucket: str | None = Field(
        None,
        description="A storage bucket, as namespace/name, that becomes /data and outlives restarts; it is made,"
        " private, if there is none.",
        json_schema_extra=ADVANCED,
    )
    variables: tuple[str, ...] = Field(
        (),
        description=f"Settings of the app, as {PREFIX}MAX_QUEUED=5; whoever sees the Space sees them too.",
        json_schema_extra=ADVANCED,
    )
    secrets: tuple[str, ...] = Field(
        (),
        description="Names of settings that nobody can read back; their values come from the environment here.",
        json_schema_extra=ADVANCED,
    )

    @field_validator("repo_id", "bucket")
    @classmethod
    def _a_repo_id(cls, value: str | None) -> str | None:
        return parse_repo_id(value, namespaced=True) if value else None

    @field_validator("hardware")
    @classmethod
    def _runs_processes(cls, value: str | None) -> str | None:
        if value == ZERO_GPU:
            raise ValueError("ZeroGPU starts no processes, which jobs and chats need: choose another")
        return value

    @field_validator("variables")
    @classmethod
    def _are_set(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := next((value for value in values if "=" not in value), None):
            raise ValueError(f"{wrong[:80]!r} sets nothing: write {PREFIX}MAX_QUEUED=5")
        names = [value.partition("=")[0] for value in values]
        _known(names)
        if secret := next((name for name in names if _is_secret(_SETTINGS[name])), None):
            raise ValueError(f"{secret} would be seen by everybody: set it in the environment and name it in secrets")
        return values

    @field_validator("secrets")
    @classmethod
    def _are_names(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if any("=" in value for value in values):
            raise ValueError("give the name alone: its value comes from the environment, never from a flag")
        _known(values)
        return values

    @model_validator(mode="after")
    def _can_sleep(self) -> "DeployOptions":
        if self.sleep_time is not None and self.hardware == FREE_HARDWARE:
            raise ValueError(f"sleep_time: {FREE_HARDWARE} always sleeps after 48 hours: leave it out, or choose other")
        return self


def _known(names: Iterable[str]) -> None:
    """Refuse what the app would not read."""
    if strange := next((name for name in names if name not in _SETTINGS), None):
        raise ValueError(f"{strange[:80]!r} is no setting of the app: choose from {', '.join(sorted(_SETTINGS))}")


def _is_secret(annotation: object) -> bool:
    return annotation is SecretStr or any(_is_secret(inner) for inner in get_args(annotation))
