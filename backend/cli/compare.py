"""`compare`: several models answer the same."""

import sys
from pathlib import Path
from typing import Any

from pydantic import Field

from backend.cli.command import Argument, Command, with_options
from backend.cli.names import admitted, fetched
from backend.errors import SpecError
from backend.model_folder import is_adapter
from backend.options import parse
from backend.serve.chat import ChatOptions
from backend.serve.compare import MOST, PROMPT, as_csv, batch, compare, last, read_prompts
from backend.serve.servers import Servers
from backend.settings import load_settings


class _Compare(Command):
    folders: Argument[list[Path]] = Field(description=f"The folders of two models, or of up to {MOST}.")
    prompt: str | None = Field(None, description="The question.")
    prompts: Path | None = Field(None, description="A text file with one question a line.")
    base_model: str | None = Field(None, description="Of adapters: the model that they were trained on.")
    output: Path | None = Field(None, description="Where the table of a file of questions goes, as CSV.")

    def run(self) -> None:
        options, models = parse(ChatOptions, self.given(ChatOptions)), self._models()
        if (self.prompt is None) == (self.prompts is None):
            raise SpecError("Give either --prompt or --prompts.")
        settings = load_settings().writable()
        base = fetched(self.base_model, settings) if self.base_model else None
        servers = Servers(settings, lambda _: base)
        try:
            if self.prompts:
                self._table(servers, models, options, settings.server_start_seconds)
            else:
                self._once(servers, models, options, settings.server_start_seconds)
        finally:
            servers.stop()

    def _models(self) -> dict[str, Path]:
        if not 2 <= len(self.folders) <= MOST:
            raise SpecError(f"Give the folders of two models, or of up to {MOST}.")
        names = [folder.name for folder in self.folders]
        if len({PROMPT, *names}) <= len(names):
            names = [str(folder.resolve()) for folder in self.folders]
        folders = [
            folder.resolve() if self.base_model and is_adapter(folder) else admitted(folder) for folder in self.folders
        ]
        return dict(zip(names, folders, strict=True))

    def _once(self: Any, servers: Servers, models: dict[str, Path], options: ChatOptions, seconds: float) -> None:
        replies = last(compare(servers, models, self.prompt, "", options, seconds))
        told = [
            f"== {name}\n{reply.error or (reply.answer.text if reply.answer else '')}"
            for name, reply in replies.items()
        ]
        self.say({name: reply.model_dump(mode="json") for name, reply in replies.items()}, "\n\n".join(told))

    def _table(self: Any, servers: Servers, models: dict[str, Path], options: ChatOptions, seconds: float) -> None:
        rows = [{PROMPT: prompt} for prompt in read_prompts(self.prompts)]
        if self.output:
            self.output.open("a").close()  # refused before the work where it cannot be written
        try:
            for done in batch(servers, models, rows, options, seconds):
                sys.stderr.write(f"\r{done} of {len(rows) * len(models)} answers")
        finally:  # what was answered before something failed is worth as much as it was
            sys.stderr.write("\n")
            if len(rows[0]) > 1:
                self._save(rows)

    def _save(self: Any, rows: list[dict[str, str]]) -> None:
        if self.output:
            self.output.write_text(as_csv(rows), encoding="utf-8")
        self.say({"rows": rows}, f"Written to {self.output}" if self.output else as_csv(rows).rstrip())


COMMAND = with_options(_Compare, {"chat": ChatOptions})
