"""`merge`: adapters added to their base model."""

from pathlib import Path

from pydantic import Field

from backend.cli.command import Argument, Command, with_options
from backend.cli.names import MODEL_HELP, hub_token
from backend.cli.recipe import made
from backend.cli.words import summary, words
from backend.merge.on_hub import base_of
from backend.merge.options import MergeOptions
from backend.recipes import parse_recipe


class _Merge(Command):
    adapter: Argument[list[str]] = Field(description="The adapter, a folder or a Hub id; several are added up.")
    output: Path = Field(description="The folder to write; it must not exist.")
    base: str | None = Field(None, description=f"The base model; by default what the adapter names. {MODEL_HELP}")
    revision: str | None = Field(None, description="Branch, tag or commit of the base model.")

    def run(self) -> None:
        base = self.base or base_of(self.adapter, hub_token())
        stage = {"stage": "merge", "adapters": self.adapter, **self.given(MergeOptions)}
        data = {"base_model": base, "revision": self.revision, "stages": [stage]}
        output, artifact = made(parse_recipe(data, paths=True), self.output)
        assert artifact.merged
        self.say(
            {"output": str(output), "merged": artifact.merged.model_dump(), **summary(artifact)},
            f"{output}\n{words(artifact)}",
        )


COMMAND = with_options(_Merge, {"merge": MergeOptions}, leave_out=("adapters", "adapter_revisions", "keep"))
