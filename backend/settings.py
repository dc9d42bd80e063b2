"""What the machine's owner sets, from the environment: `WEIGHTSMITH_DATA` and its like."""

import ipaddress
import os
import re
import tempfile
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FilePath,
    SecretStr,
    ValidationError,
    model_validator,
)

from backend.errors import SpecError
from backend.options import words

PREFIX = "WEIGHTSMITH_"


def load_settings() -> "Settings":
    """Read the settings.

    Raises:
        SpecError: A variable's value will not do; all of them at once.
    """
    try:
        return Settings()
    except ValidationError as e:
        faults = [f"{PREFIX}{str(error['loc'][0]).upper()} {words(error)}" for error in e.errors()]
        raise SpecError("\n".join(faults)) from e


def _default_data() -> Path:
    """A Space with a volume mounts it at /data; everywhere else the data lies beside the app."""
    shared = Path("/data")
    return shared if shared.is_dir() and os.access(shared, os.W_OK) else Path("data")


def _names(text: str) -> tuple[str, ...]:
    """Read names with commas or spaces between them."""
    return tuple(re.findall(r"[^\s,]+", text.lower()))


def _read_names(given: object) -> object:
    return _names(given) if isinstance(given, str) else given


def _long(password: SecretStr) -> SecretStr:
    """Check a length without saying what was given."""
    if len(password) < 8:
        raise ValueError("must have at least 8 characters")
    return password


Names = Annotated[tuple[str, ...], BeforeValidator(_read_names)]


class Settings(BaseModel):
    """The owner's settings; each is an environment variable with the prefix WEIGHTSMITH_."""

    model_config = ConfigDict(frozen=True)

    data: Path = Field(
        default_factory=_default_data,
        description="Where jobs, models and the database lie; by default /data where it can be written, else ./data.",
    )
    host: str = Field("127.0.0.1", description="The address that the page listens on.")
    port: int = Field(7860, ge=1, le=65535, description="The port that the page listens on.")
    password: Annotated[SecretStr, AfterValidator(_long)] | None = Field(
        None,
        description="Lets others on the network into the page; listening beyond 127.0.0.1 requires one.",
    )
    hosts: Names = Field((), description="Further host names by which browsers reach the page, such as studio.lan.")
    members: Names = Field(
        default_factory=lambda: _names(os.environ.get("SPACE_AUTHOR_NAME", "")),
        description="Users and organizations of the Hub who may run jobs on a Space; by default its owner. `*` is"
        " whoever signs in.",
    )
    server_idle_seconds: float = Field(900, gt=0, description="An unused chat server stops after this many seconds.")
    server_start_seconds: float = Field(300, gt=0, description="How long a model may take to load.")
    cancel_seconds: float = Field(10, gt=0, description="How long a canceled job may take to stop by itself.")
    hub_patience_seconds: float = Field(
        600, gt=0, description="How long a push waits for a Hub that is overloaded or away, at each request."
    )
    max_queued: int = Field(3, ge=1, description="Jobs that one person may have waiting.")
    max_upload_bytes: int = Field(200_000_000, ge=1, description="The largest file that can be uploaded.")
    upload_quota_bytes: int | None = Field(
        default_factory=lambda: 1_000_000_000 if "SPACE_ID" in os.environ else None,  # one's own disk is one's own
        ge=1,
        description="What all uploads of one person may take at a time; by default 1 GB on a Space, elsewhere no end.",
    )
    num_processes: int | None = Field(
        None,
        ge=1,
        description="Processes of a training; by default one for each GPU. One step learns from each one's batch.",
    )
    accelerate_config: FilePath | None = Field(
        None,
        description="What `accelerate config` wrote, for trainings on several machines; goes before num_processes.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_the_environment(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Add what the environment sets to what the program says, which counts more."""
        named = {name.upper(): text for name, text in os.environ.items()}
        known = {name: named[PREFIX + name.upper()] for name in cls.model_fields if PREFIX + name.upper() in named}
        return known | given

    def writable(self) -> "Settings":
        """Make the data folder.

        Raises:
            SpecError: It cannot be made, or not be written to.
        """
        try:
            self.data.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.data):
                return self
        except OSError as e:
            raise SpecError(
                f"The data folder '{self.data}' cannot be written to. {e.strerror}: set WEIGHTSMITH_DATA to a folder of"
                " yours."
            ) from e

    def guarded(self) -> "Settings":
        """See that nobody gets in unasked.

        Raises:
            SpecError: The page could be reached from the network, without a password.
        """
        if not (self.on_space or self.loopback or self.password):
            raise SpecError(
                f"Will not listen on '{self.host}' unguarded. Whoever reached the page could use this machine: set"
                " WEIGHTSMITH_PASSWORD, or leave WEIGHTSMITH_HOST at 127.0.0.1."
            )
        return self

    @property
    def loopback(self) -> bool:
        """Whether the page is reached from this machine alone."""
        if self.on_space:
            return False
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def known_hosts(self) -> frozenset[str]:
        """The names by which the page is reached; addresses are none."""
        given = _names(os.environ.get("SPACE_HOST", "")) if self.on_space else ("localhost",)
        return frozenset({*given, *self.hosts})

    @property
    def on_space(self) -> bool:
        """Whether this is a Hugging Face Space, where several people use one process."""
        return "SPACE_ID" in os.environ

    @property
    def models(self) -> Path:
        """Where downloaded models lie."""
        return self.data.resolve() / "models"

    @property
    def jobs(self) -> Path:
        """Where the jobs' folders lie."""
        return self.data.resolve() / "jobs"
