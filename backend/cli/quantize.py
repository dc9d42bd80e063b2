"""`quantize`: a model in fewer bits, or in another type."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from backend.cli.command import Argument, Command, with_options
from backend.cli.names import MODEL_HELP
from backend.cli.recipe import LAYOUTS, METHOD_OPTIONS, all_made, quantization, told
from backend.quantize.targets import names_in_all_layouts

_RUNS = "".join(f"\n  {name:<6} {names_in_all_layouts(name)}" for name in METHOD_OPTIONS)


class _Quantize(Command):
    notes: ClassVar[str] = f"where the result runs:{_RUNS}"

    model: Argument[str] = Field(description=MODEL_HELP)
    output: Path = Field(description="The folder to write; it must not exist.")
    revision: str | None = Field(None, description="Branch, tag or commit of the model.")

    def run(self) -> None:
        results, lines = told(all_made(quantization(self), self.output))
        self.say(results[0] if len(results) == 1 else {"artifacts": results}, "\n".join(lines))


METHOD = (Literal[tuple(METHOD_OPTIONS)], Field(description="How."))

COMMAND = with_options(_Quantize, METHOD_OPTIONS, method=METHOD, layouts=LAYOUTS)
