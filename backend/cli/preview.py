"""`preview`: rows as a model would see them."""

import sys

from pydantic import Field

from backend.cli.command import Argument, Command, with_options
from backend.cli.names import MODEL_HELP, hub_token, local_or_id
from backend.data.options import DatasetOptions
from backend.finetune.options import FinetuneOptions
from backend.jobs.foreground import Terminal, finished
from backend.jobs.previews import pinned, read_seen
from backend.options import parse
from backend.preview import view
from backend.settings import load_settings
from backend.spec import RENDERING


class _Preview(Command):
    model: Argument[str] = Field(description=MODEL_HELP)
    base_revision: str | None = Field(None, description="Branch, tag or commit of the model.")

    def run(self) -> None:
        settings, token = load_settings().writable(), hub_token()
        options = parse(FinetuneOptions, self.given(FinetuneOptions), context={"paths": True})
        spec = pinned(local_or_id(self.model, "model"), self.base_revision, options, token)
        with finished(spec, token, Terminal().hear, settings) as job:
            seen = read_seen(job, spec)
        self.say(seen.model_dump(mode="json", exclude={"faults"}), view(seen, sys.stdout.isatty()))


_OF_TRAINING = FinetuneOptions.model_fields.keys() - {*DatasetOptions.model_fields, *RENDERING}

COMMAND = with_options(_Preview, {"finetune": FinetuneOptions}, leave_out=tuple(_OF_TRAINING))
