"""The commands: the flags of each are the fields of a model, those of the stages taken from their option models."""

import contextlib
import json
import sys
import threading
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from huggingface_hub import get_token
from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo
from pydantic_settings import CliPositionalArg

from backend.check import CheckOptions
from backend.errors import JobError, SpecError
from backend.evaluate import EvaluateOptions
from backend.finetune.dataset import DatasetOptions
from backend.finetune.options import FinetuneOptions
from backend.finetune.presets import PresetName, preset_values
from backend.hub.download import check_model, fetch_model
from backend.hub.names import DEMO, is_local, parse_model
from backend.jobs.calibration import calibrate
from backend.jobs.estimates import estimate
from backend.jobs.foreground import Terminal, check_output, finished, move
from backend.jobs.preflight import prepare
from backend.jobs.previews import pinned, read_seen
from backend.jobs.specs import RENDERING, Checking, Evaluation, artifacts, publication, published, stage_folder, steps
from backend.merge import MergeOptions
from backend.merge.hub import base_of
from backend.models.artifacts import Artifact, open_artifact, weights_bytes
from backend.models.inspection import inspect
from backend.options import COMMON_OPTIONS, Frozen, parse
from backend.preview import view
from backend.progress import Report, silent
from backend.publish import PublishOptions
from backend.publish.destination import check_destination
from backend.publish.folder import describe
from backend.quantize import METHODS
from backend.recipes import Recipe, parse_recipe, read_recipe
from backend.serve.chat import ChatOptions, stream
from backend.serve.compare import MOST, as_csv, batch, compare, read_prompts
from backend.serve.engines import EngineName, is_adapter
from backend.serve.servers import Servers
from backend.serve.serving import Server
from backend.settings import Settings, load_settings
from backend.wording import checked, model_words, needs, quality, summary, words

MODEL_HELP = "A Hub id, demo (the bundled model), or a local folder."
METHOD_OPTIONS = {name: module.Options for name, module in METHODS.items()}


class Command(BaseModel):
    """What every command has."""

    json_: bool = Field(False, validation_alias="json", description="Print one JSON object and nothing else.")

    def given(self, *models: type[Frozen]) -> dict[str, Any]:
        """Give the options of these models that were typed."""
        names = {field for model in models for field in model.model_fields} - {*COMMON_OPTIONS}
        return {name: getattr(self, name) for name in self.model_fields_set & names}

    def say(self, data: dict[str, Any], text: str) -> None:
        """Print the result: as JSON, or as a person reads it."""
        sys.stdout.write((json.dumps(data, ensure_ascii=False) if self.json_ else text) + "\n")
        sys.stdout.flush()


def with_options(
    command: type[Command], models: dict[str, type[Frozen]], leave_out: tuple[str, ...] = (), **more: Any
) -> Any:
    """Give the command with a flag for each field of option models.

    What is not typed is not passed on, so that a flag of one method does not disturb another.
    """
    fields: dict[str, Any] = dict(more)
    for label, model in models.items():
        for name, info in model.model_fields.items():
            if name in (*COMMON_OPTIONS, *leave_out):
                continue
            text = fields[name][1].description if name in fields else info.description or ""
            text += f" [{label}]" if len(models) > 1 else ""
            fields[name] = (_typed(info.annotation), FieldInfo(default=info.default, description=text))
    return create_model(command.__name__.strip("_"), __base__=command, __doc__=command.__doc__, **fields)


def _typed(annotation: Any) -> Any:
    """Give what a flag is read as: of a choice among numbers a number, which the option model then looks at."""
    return int if get_origin(annotation) is Literal and isinstance(get_args(annotation)[0], int) else annotation


METHOD_FLAG: dict[str, Any] = {"method": (Literal[tuple(METHODS)], FieldInfo(description="How."))}
OPTIONAL_METHOD_FLAG: dict[str, Any] = {
    "method": (
        Literal[tuple(METHODS)] | None,
        FieldInfo(default=None, description="How; a recipe file says it itself."),
    )
}


class _Quantize(Command):
    """Quantize a model into a new folder, or cast it to another type."""

    model: CliPositionalArg[str] = Field(description=MODEL_HELP)
    output: Path = Field(description="The folder to write; it must not exist.")
    revision: str | None = Field(None, description="Branch, tag or commit of the model.")

    def cli_cmd(self) -> None:
        """Run it."""
        output, artifact = made(single_stage(self), self.output)
        self.say({"output": str(output), **summary(artifact)}, f"{output}\n{words(artifact)}")


class _Merge(Command):
    """Merge LoRA adapters and their base model into a new folder."""

    adapter: CliPositionalArg[list[str]] = Field(description="The adapter, a folder or a Hub id; several are added up.")
    output: Path = Field(description="The folder to write; it must not exist.")
    base: str | None = Field(None, description=f"The base model; by default what the adapter names. {MODEL_HELP}")
    revision: str | None = Field(None, description="Branch, tag or commit of the base model.")

    def cli_cmd(self) -> None:
        """Run it."""
        base = self.base or base_of(self.adapter, get_token())
        stage = {"stage": "merge", "adapters": self.adapter, **self.given(MergeOptions)}
        data = {"base_model": base, "revision": self.revision, "stages": [stage]}
        output, artifact = made(parse_recipe(data, paths=True), self.output)
        assert artifact.merged
        self.say(
            {"output": str(output), "merged": artifact.merged.model_dump(), **summary(artifact)},
            f"{output}\n{words(artifact)}",
        )


class _Finetune(Command):
    """Train an adapter on rows of your own (QLoRA) into a new folder."""

    model: CliPositionalArg[str] = Field(description=MODEL_HELP)
    output: Path = Field(description="The folder to write; it must not exist.")
    base_revision: str | None = Field(None, description="Branch, tag or commit of the model.")

    preset: PresetName | None = Field(None, description="Set the training in one word; flags beside it count more.")

    def cli_cmd(self) -> None:
        """Run it."""
        recipe = self._recipe({})
        facts = inspect(recipe.base_model, recipe.revision, get_token())
        if self.preset:
            recipe = self._recipe(preset_values(self.preset, facts))
        sys.stderr.write(f"Reckoned before the start: {needs(estimate(recipe, facts, load_settings().data))}\n")
        output, artifact = made(recipe, self.output)
        assert artifact.training
        self.say(
            {"output": str(output), "training": artifact.training.model_dump(), **summary(artifact)},
            f"{output}\n{words(artifact)}",
        )

    def _recipe(self, preset: dict[str, Any]) -> Recipe:
        stage = {"stage": "finetune", **preset, **self.given(FinetuneOptions)}
        data = {"base_model": self.model, "revision": self.base_revision, "stages": [stage]}
        return parse_recipe(data, paths=True)


class _Preview(Command):
    """Show rows as the model would see them, and everything that is to be said of them, before a training."""

    model: CliPositionalArg[str] = Field(description=MODEL_HELP)
    base_revision: str | None = Field(None, description="Branch, tag or commit of the model.")

    def cli_cmd(self) -> None:
        """Run it."""
        settings, token = load_settings().writable(), get_token()
        options = parse(FinetuneOptions, self.given(FinetuneOptions), context={"paths": True})
        spec = pinned(local_or_id(self.model, "model"), self.base_revision, options, token)
        with finished(spec, token, Terminal().hear, settings) as job:
            seen = read_seen(job, spec)
        self.say(seen.model_dump(mode="json", exclude={"faults"}), view(seen, sys.stdout.isatty()))


class _Estimate(Command):
    """Say what quantizing, or any recipe, also one that tunes, would need, before anything is downloaded."""

    model: CliPositionalArg[str] = Field(
        description=f"{MODEL_HELP} Or a recipe file (.yaml), which says all the rest: a training is estimated so."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of the model.")

    def cli_cmd(self) -> None:
        """Run it."""
        recipe, data = self._recipe(), load_settings().writable().data
        facts = inspect(recipe.base_model, recipe.revision, get_token())
        for stage in recipe.making:
            stage.check(facts)
        calibrate(data)
        needed = estimate(recipe, facts, data)
        more: dict[str, Any] = {"training": needed.training_memory} if needed.training else {}
        more |= {"warnings": needed.warnings} if needed.warnings else {}
        self.say(needed.model_dump() | more, f"{model_words(facts)}\n{needs(needed)}")

    def _recipe(self: Any) -> Recipe:
        """Give the recipe that is meant: a file's, or that of one method."""
        if Path(self.model).suffix in (".yaml", ".yml"):
            if flags := self.model_fields_set - {"model", "json_"}:
                raise SpecError(f"'{self.model}' says everything itself: leave out --{min(flags).replace('_', '-')}.")
            return read_recipe(Path(self.model))
        if self.method is None:
            raise SpecError(f"Could not estimate '{self.model}'. Say how with --method, or give a recipe file.")
        return single_stage(self)


class _Evaluate(Command):
    """Measure a model folder against the model that it was made from."""

    folder: CliPositionalArg[Path] = Field(description="The folder of the model.")
    reference: str = Field(description=MODEL_HELP)
    revision: str | None = Field(None, description="Branch, tag or commit of the reference.")

    def cli_cmd(self) -> None:
        """Run it."""
        settings, folder = load_settings().writable(), admitted(self.folder)
        options = parse(EvaluateOptions, absolute_text(self.given(EvaluateOptions)))
        reference = local_or_id(self.reference)
        facts = inspect(reference, self.revision, get_token())
        spec = Evaluation(folder=folder, reference=reference, revision=facts.commit, options=options)
        with finished(spec, get_token(), Terminal().hear, settings) as job:
            metrics = open_artifact(stage_folder(job, spec, 1)).metrics
        assert metrics
        self.say(metrics.model_dump(), quality(metrics.model_dump()))


class _Check(Command):
    """Try a model folder in the engine that serves it: does it load, and say what its weights say?"""

    folder: CliPositionalArg[Path] = Field(description="The folder of the model.")
    base_model: str | None = Field(None, description="Of an adapter: the model that it was trained on.")

    def cli_cmd(self) -> None:
        """Run it."""
        settings, base = load_settings().writable(), self.base_model
        options = parse(CheckOptions, self.given(CheckOptions))
        folder = existing(self.folder) if base else admitted(self.folder)
        spec = Checking(folder=folder, base=fetched(base, settings) if base else None, options=options)
        with finished(spec, get_token(), Terminal().hear, settings) as job:
            check = open_artifact(stage_folder(job, spec, 0)).check
        assert check
        if check.passed or self.json_:
            self.say(check.model_dump(exclude_none=True), checked(check))
        if not check.passed:
            raise JobError(f"'{folder.name}' failed its check. {check.reason}")


class _Run(Command):
    """Run a recipe file."""

    recipe: CliPositionalArg[Path] = Field(description="The recipe, YAML.")
    output: Path | None = Field(
        None,
        description="The folder to write; by default output/ in the data folder, and none where the model goes from"
        " repo to repo, shard by shard.",
    )

    def cli_cmd(self) -> None:
        """Run it."""
        settings = load_settings().writable()
        recipe = read_recipe(self.recipe)
        wanted = check_output(self.output) if self.output else None
        spec = prepare(recipe, settings.data, get_token(), wanted is not None, Report(Terminal().hear).log)
        output = wanted or settings.data / "output" / self.recipe.stem
        if isinstance(spec, Recipe):
            output = check_output(output)
        with finished(spec, get_token(), Terminal().hear, settings) as job:
            made, done = artifacts(job), published(job, spec)
            for folder in made:
                move(folder, output if len(made) == 1 else output / folder.name)
        folders = [output] if len(made) == 1 else [output / folder.name for folder in made]
        results = [{"output": str(folder), **summary(open_artifact(folder))} for folder in folders]
        lines = [f"{folder}\n{words(open_artifact(folder))}" for folder in folders]
        lines += [f"published to {item['location']}" for item in done]
        self.say({"artifacts": results, "published": done}, "\n".join(lines))


class _Publish(Command):
    """Publish a folder with weights and its card, to the Hub or to a folder that holds what the Hub would get."""

    folder: CliPositionalArg[Path] = Field(description="An artifact, or any folder with a model or an adapter.")
    public: bool = Field(False, description="Let everybody see the new repo.")
    base_model: str | None = Field(
        None, description="The model that it was made from; an adapter is checked on it, and the card names its Hub id."
    )
    card: Path | None = Field(
        None, description="A Markdown file with your own text of the card; front matter is made here."
    )

    def cli_cmd(self) -> None:
        """Run it."""
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
        spec = publication(folder, options, base_model=None if named == DEMO or (named and is_local(named)) else named)
        check_destination(options, get_token(), weights_bytes(folder), Report(Terminal().hear).log)
        if is_adapter(folder) and "check" in steps(spec):
            named = named or (describe(folder).base_model if spec.elsewhere else None)
            spec = spec.model_copy(update={"base": fetched(named, settings) if named else None})
        with finished(spec, get_token(), Terminal().hear, settings) as job:
            done = published(job, spec)[0]
        self.say(done, f"Published to {done['location']}")


class _Chat(Command):
    """Ask a model one question."""

    folder: CliPositionalArg[Path] = Field(description="The folder of the model.")
    prompt: str = Field(description="The question.")
    base_model: str | None = Field(None, description="Of an adapter: the model that it was trained on.")
    engine: EngineName = Field("auto", description="What serves the model.")

    def cli_cmd(self) -> None:
        """Run it."""
        options = parse(ChatOptions, self.given(ChatOptions))
        with serving(self.folder, self.base_model, self.engine) as (server, _):
            shown, answer = "", None
            for answer in stream(server, [{"role": "user", "content": self.prompt}], options):
                if not self.json_:
                    sys.stdout.write(answer.text[len(shown) :])
                    sys.stdout.flush()
                shown = answer.text
        assert answer
        self.say(answer.model_dump(), "")


class _Compare(Command):
    """Ask several models the same, one after the other: one question, or a file of them."""

    folders: CliPositionalArg[list[Path]] = Field(description=f"The folders of two models, or of up to {MOST}.")
    prompt: str | None = Field(None, description="The question.")
    prompts: Path | None = Field(None, description="A text file with one question a line.")
    base_model: str | None = Field(None, description="Of adapters: the model that they were trained on.")
    output: Path | None = Field(None, description="Where the table of a file of questions goes, as CSV.")

    def cli_cmd(self) -> None:
        """Run it."""
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
        shown = names if len(set(names)) == len(names) else [str(folder) for folder in self.folders]
        folders = [
            folder.resolve() if self.base_model and is_adapter(folder) else admitted(folder) for folder in self.folders
        ]
        return dict(zip(shown, folders, strict=True))

    def _once(self: Any, servers: Servers, models: dict[str, Path], options: ChatOptions, seconds: float) -> None:
        *_, replies = compare(servers, models, self.prompt, "", options, seconds)
        told = [
            f"== {name}\n{reply.error or (reply.answer.text if reply.answer else '')}"
            for name, reply in replies.items()
        ]
        self.say({name: reply.model_dump(mode="json") for name, reply in replies.items()}, "\n\n".join(told))

    def _table(self: Any, servers: Servers, models: dict[str, Path], options: ChatOptions, seconds: float) -> None:
        rows = [{"prompt": prompt} for prompt in read_prompts(self.prompts)]
        for done in batch(servers, models, rows, options, seconds):
            sys.stderr.write(f"\r{done} of {len(rows) * len(models)} answers")
        sys.stderr.write("\n")
        if self.output:
            self.output.write_text(as_csv(rows), encoding="utf-8")
        self.say({"rows": rows}, f"Written to {self.output}" if self.output else as_csv(rows).rstrip())


class Serve(Command):
    """Serve a model as an OpenAI-compatible endpoint on this machine, until interrupted."""

    folder: CliPositionalArg[Path] = Field(description="The folder of the model.")
    port: int | None = Field(None, ge=1, le=65535, description="The port; by default a free one.")
    base_model: str | None = Field(None, description="Of an adapter: the model that it was trained on.")
    engine: EngineName = Field("auto", description="What serves the model.")

    def cli_cmd(self) -> None:
        """Run it."""
        with (
            serving(self.folder, self.base_model, self.engine, self.port) as (server, servers),
            servers.in_use(self.folder),
        ):
            data = {"base_url": server.base_url, "api_key": server.key, "model": server.model, "engine": server.engine}
            self.say(data, "\n".join(f"{name}: {value}" for name, value in data.items()))
            with contextlib.suppress(KeyboardInterrupt):
                while servers.status(self.folder).live:
                    threading.Event().wait(0.5)
                servers.current(self.folder)


Quantize = with_options(_Quantize, METHOD_OPTIONS, **METHOD_FLAG)
Finetune = with_options(_Finetune, {"finetune": FinetuneOptions})
_OF_TRAINING = FinetuneOptions.model_fields.keys() - {*DatasetOptions.model_fields, *RENDERING}
PreviewRows = with_options(_Preview, {"finetune": FinetuneOptions}, leave_out=tuple(_OF_TRAINING))
Merge = with_options(_Merge, {"merge": MergeOptions}, leave_out=("adapters", "adapter_revisions", "keep"))
Estimate = with_options(_Estimate, METHOD_OPTIONS, **OPTIONAL_METHOD_FLAG)
Evaluate = with_options(_Evaluate, {"evaluate": EvaluateOptions})
Check = with_options(_Check, {"check": CheckOptions})
Publish = with_options(_Publish, {"publish": PublishOptions}, leave_out=("card",))
Chat = with_options(_Chat, {"chat": ChatOptions})
Compare = with_options(_Compare, {"chat": ChatOptions})
Run = _Run


def single_stage(command: Any) -> Recipe:
    """Make the recipe of a command that has a model, a method and the method's options."""
    stage = {"stage": "quantize", "method": command.method, **command.given(*METHOD_OPTIONS.values())}
    data = {"base_model": command.model, "revision": command.revision, "stages": [stage]}
    return parse_recipe(data, paths=True)


def made(recipe: Recipe, folder: Path) -> tuple[Path, Artifact]:
    """Do a recipe that has one result, and give where that lies and what it is."""
    settings, output = load_settings().writable(), check_output(folder)
    prepared = prepare(recipe, settings.data, get_token())
    with finished(prepared, get_token(), Terminal().hear, settings) as job:
        move(artifacts(job)[0], output)
    return output, open_artifact(output)


def local_or_id(model: str, what: str = "reference") -> str:
    """Give what a model's name on the command line means."""
    try:
        return parse_model(model, paths=True)
    except ValueError as e:
        raise SpecError(f"The {what} {e}.") from e


def own_text(path: Path) -> str:
    """Read the user's own text of a card."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise SpecError(f"Could not read the card '{path}'. Give a text file in UTF-8.") from e


def existing(folder: Path) -> Path:
    """Give the absolute path of a folder that must exist."""
    if not folder.is_dir():
        raise SpecError(f"'{folder}' is not a folder: check the path.")
    return folder.resolve()


def admitted(folder: Path) -> Path:
    """Give the absolute path of a model folder, after the checks that any model passes before a library sees it."""
    check_model(existing(folder))
    return folder.resolve()


def absolute_text(options: dict[str, Any]) -> dict[str, Any]:
    """Make the text's path one that the worker finds too."""
    if text := options.get("text"):
        if not Path(text).is_file():
            raise SpecError(f"'{text}' is not a file: check --text.")
        return options | {"text": str(Path(text).resolve())}
    return options


def fetched(base_model: str, settings: Settings) -> Path:
    """Give the folder of an adapter's base model, which is downloaded where it is not here."""
    name = local_or_id(base_model, "base model")
    return fetch_model(name, None, settings.models, get_token(), silent())


@contextlib.contextmanager
def serving(folder: Path, base_model: str | None, engine: EngineName, port: int | None = None) -> Any:
    """Serve a folder for as long as the block lasts; that of an adapter on its base model."""
    settings = load_settings().writable()
    base = fetched(base_model, settings) if base_model else None
    servers = Servers(settings, lambda _: base)
    servers.open(existing(folder) if base else admitted(folder), engine, port)
    sys.stderr.write(f"Loading '{folder.name}', which takes some seconds.\n")
    try:
        server: Server = servers.wait(folder, settings.server_start_seconds)
        yield server, servers
    finally:
        servers.stop()
