"""`quantize`: a model in fewer bits, or in another type."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from backend.cli.command import Argument, Command, with_options
from backend.cli.names import MODEL_HELP
from backend.cli.recipe import LAYOUTS, METHOD_OPTIONS, all_made, quantization, told


class _Quantize(Command):
    model: Argument[str] = Field(description=MODEL_HELP)
    output: Path = Field(description="The folder to write; it must not exist.")
    revision: str | None = Field(None, description="Branch, tag or commit of the model.")

    def run(self) -> None:
        results, lines = told(all_made(quantization(self), self.output))
        self.say(results[0] if len(results) == 1 else {"artifacts": results}, "\n".join(lines))


METHOD = (Literal[tuple(METHOD_OPTIONS)], Field(description="How."))

COMMAND = with_options(_Quantize, METHOD_OPTIONS, method=METHOD, layouts=LAYOUTS)
