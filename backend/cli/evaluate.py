"""`evaluate`: how much worse a model got."""

from pathlib import Path
from typing import Any

from pydantic import Field

from backend.artifacts.sealing import open_artifact
from backend.cli.command import Argument, Command, with_options
from backend.cli.names import MODEL_HELP, admitted, hub_token, local_or_id
from backend.cli.words import worst_data, worst_words
from backend.errors import SpecError
from backend.evaluate import EvaluateOptions
from backend.evaluate.tasks import check_installed
from backend.jobs.foreground import Terminal, finished
from backend.models.inspection import inspect
from backend.options import parse
from backend.settings import load_settings
from backend.stages.estimate import converts
from backend.stages.held_out import read_worst
from backend.stages.kinds import Evaluation
from backend.stages.work import stage_folder


class _Evaluate(Command):
    folder: Argument[Path] = Field(description="The folder of the model.")
    reference: str = Field(description=MODEL_HELP)
    revision: str | None = Field(None, description="Branch, tag or commit of the reference.")

    def run(self) -> None:
        settings, folder = load_settings().writable(), admitted(self.folder)
        options = parse(EvaluateOptions, absolute_text(self.given(EvaluateOptions)), context={"paths": True})
        check_installed(options)
        reference = local_or_id(self.reference)
        facts = inspect(reference, self.revision, hub_token())
        converting = converts(facts, settings.data) or None
        spec = Evaluation(
            folder=folder, reference=reference, revision=facts.commit, options=options, converts=converting
        )
        with finished(spec, hub_token(), Terminal().hear, settings) as job:
            metrics = open_artifact(stage_folder(job, spec, len(spec.steps) - 1)).metrics
            worst = read_worst(job, folder.name)
        assert metrics
        lines = [metrics.words, *worst_words(metrics, worst)]
        self.say({**metrics.model_dump(), **worst_data(worst)}, "\n".join(lines))


def absolute_text(options: dict[str, Any]) -> dict[str, Any]:
    """Make the text's path one that the worker finds too."""
    if text := options.get("text"):
        if not Path(text).is_file():
            raise SpecError(f"'{text}' is not a file: check --text.")
        return options | {"text": str(Path(text).resolve())}
    return options


COMMAND = with_options(_Evaluate, {"evaluate": EvaluateOptions})
