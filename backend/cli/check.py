"""`check`: a model tried in its engine."""

from pathlib import Path

from pydantic import Field

from backend.artifacts.sealing import open_artifact
from backend.check import CheckOptions
from backend.cli.command import Argument, Command, with_options
from backend.cli.names import admitted, existing, fetched, hub_token
from backend.errors import JobError
from backend.jobs.foreground import Terminal, finished
from backend.options import parse
from backend.settings import load_settings
from backend.stages.kinds import Checking
from backend.stages.work import stage_folder


class _Check(Command):
    folder: Argument[Path] = Field(description="The folder of the model.")
    base_model: str | None = Field(None, description="Of an adapter: the model that it was trained on.")
    reference: str | None = Field(
        None, description="The model that it was made from: what that one does too is no failure of this one."
    )

    def run(self) -> None:
        settings, base = load_settings().writable(), self.base_model
        options = parse(CheckOptions, self.given(CheckOptions))
        folder = existing(self.folder) if base else admitted(self.folder)
        named = {"base": base, "reference": self.reference}
        places = {name: fetched(model, settings) for name, model in named.items() if model}
        spec = Checking(folder=folder, options=options, **places)
        with finished(spec, hub_token(), Terminal().hear, settings) as job:
            check = open_artifact(stage_folder(job, spec, 0)).check
        assert check
        if check.passed or self.json_:
            self.say(check.model_dump(exclude_none=True), check.words)
        if not check.passed:
            raise JobError(f"'{folder.name}' failed its check. {check.reason}")


COMMAND = with_options(_Check, {"check": CheckOptions})
