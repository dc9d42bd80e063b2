"""PublishOptions: where an artifact goes, and how."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from backend.hub.ids import parse_repo_id
from backend.options import Frozen


class PublishOptions(Frozen):
    """Where an artifact goes: a repo on the Hub or a local folder, never both."""

    repo_id: str | None = Field(None, description="The repo to make on the Hub, as namespace/name.")
    private: bool | None = Field(
        None,
        description="Only you see the repo. By default a new one is private, and one that is updated stays as it is.",
    )
    to_folder: Path | None = Field(None, description="A folder to write instead: exactly what the Hub would get.")

    card: str | None = Field(
        None, max_length=200_000, description="Your own text of the card, in Markdown, under front matter made here."
    )
    update: bool = Field(
        False,
        description="If the repo exists, put this in place of what it holds, in one commit; earlier ones stay there.",
    )
    gated: Literal["auto", "manual"] | None = Field(
        None, description="Who downloads must ask first, and is let in at once (auto) or by you (manual)."
    )
    collection: str | None = Field(
        None,
        min_length=1,
        description="A collection to put the repo into, by its title or slug; made in the repo's namespace if it is"
        " not there, and as private as the repo.",
    )
    variants: tuple[str, ...] = Field(
        (),
        description="Repos with the same model made in other ways: the card links to them. Its own may be among them.",
    )
    insist: bool = Field(
        False, description="Publish it although its check failed, or without one; the card then says so."
    )

    @field_validator("repo_id")
    @classmethod
    def _a_repo_id(cls, value: str | None) -> str | None:
        return parse_repo_id(value, namespaced=True) if value else None

    @field_validator("variants")
    @classmethod
    def _repo_ids(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(parse_repo_id(value, namespaced=True) for value in values))

    @model_validator(mode="after")
    def _one_destination(self) -> "PublishOptions":
        if self.repo_id is None and self.to_folder is None:
            raise ValueError("repo_id: is missing: give repo_id or to_folder")
        if self.repo_id is not None and self.to_folder is not None:
            raise ValueError("to_folder: excludes repo_id: give one of them")
        for name in ("update", "gated", "collection"):
            if self.to_folder and getattr(self, name):
                raise ValueError(f"{name}: is for a repo on the Hub, and a folder was named")
        return self
