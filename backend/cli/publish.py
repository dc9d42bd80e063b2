"""`publish`: a folder goes to the Hub."""

from pathlib import Path

from pydantic import Field

from backend.cli.command import Argument, Command, with_options
from backend.cli.names import existing, fetched, hub_token, local_or_id
from backend.errors import SpecError
from backend.hub.ids import DEMO, is_local
from backend.jobs.foreground import Terminal, check_output, finished
from backend.jobs.job import published
from backend.model_folder import is_adapter
from backend.options import parse
from backend.progress import Report
from backend.publish.adopt import describe
from backend.publish.options import PublishOptions
from backend.publish.plan import plan
from backend.settings import load_settings
from backend.stages.kinds import Publication


class _Publish(Command):
    folder: Argument[Path] = Field(description="An artifact, or any folder with a model or an adapter.")
    public: bool = Field(False, description="Let everybody see the new repo.")
    base_model: str | None = Field(
        None, description="The model that it was made from; an adapter is checked on it, and the card names its Hub id."
    )
    card: Path | None = Field(
        None, description="A Markdown file with your own text of the card; front matter is made here."
    )

    def run(self) -> None:
        settings, given = load_settings().writable(), self.given(PublishOptions)
        if self.public and given.get("private"):
            raise SpecError("--public and --private exclude each other: give one of them.")
        if target := given.get("to_folder"):
            given["to_folder"] = check_output(target)
        if self.card:
            given["card"] = own_text(self.card)
        options = parse(PublishOptions, given | ({"private": False} if self.public else {}))
        folder = existing(self.folder)
        named = local_or_id(self.base_model, "base model") if self.base_model else None
        base_model = None if named == DEMO or (named and is_local(named)) else named
        [found] = plan([(folder, options)], hub_token(), Report(Terminal().hear).log, base_model)
        spec = Publication.of(found)
        if is_adapter(folder) and spec.checks:
            named = named or (describe(folder).base_model if spec.elsewhere else None)
            spec = spec.model_copy(update={"base": fetched(named, settings) if named else None})
        with finished(spec, hub_token(), Terminal().hear, settings) as job:
            done = published(job, spec)[0]
        self.say(done, f"Published to {done['location']}")


def own_text(path: Path) -> str:
    """Read the user's own text of a card."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise SpecError(f"Could not read the card '{path}'. Give a text file in UTF-8.") from e


COMMAND = with_options(_Publish, {"publish": PublishOptions}, leave_out=("card",))
