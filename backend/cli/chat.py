"""`chat`: one question to a model."""

import sys
from pathlib import Path

from pydantic import Field

from backend.cli.command import Argument, Command, with_options
from backend.cli.names import existing
from backend.cli.serve import serving
from backend.options import parse
from backend.serve.chat import ChatOptions, check_pictures, stream, turn
from backend.serve.engines import AUTO, EngineName


class _Chat(Command):
    folder: Argument[Path] = Field(description="The folder of the model.")
    prompt: str = Field(description="The question.")
    image: tuple[Path, ...] = Field((), description="Pictures that it is about: PNG, JPEG or WebP files.")
    base_model: str | None = Field(None, description="Of an adapter: the model that it was trained on.")
    engine: EngineName = Field(AUTO, description="What serves the model.")

    def run(self) -> None:
        options, asked = parse(ChatOptions, self.given(ChatOptions)), turn(self.prompt, self.image)
        if not self.base_model:
            check_pictures(existing(self.folder), None, [asked])  # before it is loaded, which takes minutes
        with serving(self.folder, self.base_model, self.engine) as (server, _):
            shown, answer = "", None
            for answer in stream(server, [asked], options):
                if not self.json_:
                    sys.stdout.write(answer.text[len(shown) :])
                    sys.stdout.flush()
                shown = answer.text
        assert answer
        self.say(answer.model_dump(), "")


COMMAND = with_options(_Chat, {"chat": ChatOptions})
