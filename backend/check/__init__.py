"""The check before publishing: does the engine that will serve an artifact load it, and say what its weights say?

The engine answers fixed prompts, each time with the likeliest token. The same weights then read every answer in
transformers, the reference forward: a token counts as theirs if it is the likeliest there too, or all but so, for an
engine that computes in other kernels decides near ties in another way. An engine that reads packed weights in a wrong
order, or with other zeros, writes what the weights never would.

An adapter must change what the engine computes. Where an engine serves the base model beside it, both say how likely
the first token is that they take after each prompt: they must differ, be it in the last bit. Another engine's answers
must lie nearer to the weights with the adapter than to those without.

Answers go on to their end, for what fails without an error; see failures.py. Where one does, the original is asked the
same in transformers, and only what it does not do counts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from backend.artifacts.artifact import Check
from backend.check.failures import Answer, counted, findings, symptoms
from backend.check.prompts import Prompt, continued, prompts_of
from backend.check.reading import gaps, whole, within, written
from backend.disk import scratch
from backend.errors import AppError, JobError
from backend.evaluate import PROMPTS
from backend.model_folder import CONFIG, has_chat_template, settings_in
from backend.models.chat_template import abilities
from backend.models.loading import load_tokenizer
from backend.progress import Report
from backend.serve.engines import AUTO, ENGINES, EngineName
from backend.serve.guard import COMPARED
from backend.settings import Settings
from backend.stage import Stage

if TYPE_CHECKING:
    from backend.serve.server import Server

NEAR = 0.5
"""Nats below the likeliest token at which a token still counts as the weights' own choice: AWQ in vLLM on a CPU, which
multiplies 8-bit activations, was seen 0.12 below at most.
"""

THINKING = 4
"""Times as many tokens as other models may write within which a model that thinks must end."""

NEEDED, LIKELIEST = 0.9, 0.75
"""Shares of the tokens of all answers that must count so, and that must be the very likeliest."""

ANSWER_SECONDS = 3600.0
"""That one answer may take."""

_IGNORED = (
    "{} answers as the base model does, without the adapter: it loads no layers of these names, or they change nothing."
    " Choose another engine, or merge the adapter."
)

CONVENTION = f"as theirs counts the likeliest token, and one that is at most {NEAR:g} nat less likely"


class CheckOptions(Stage):
    """How a result is tried before it is published."""

    whole = False
    gpu = True

    stage: Literal["check"] = "check"
    engine: EngineName = Field(AUTO, description="What serves the result: by default what its card recommends.")
    max_tokens: int = Field(
        256,
        ge=4,
        le=8192,
        description="Tokens within which an answer must end where its original's does. A model that thinks has"
        f" {THINKING} times as many.",
    )


class Tried(NamedTuple):
    """What is tried.

    Attributes:
        folder: Of a model, or of an adapter.
        base: Of an adapter, the folder of its base model.
        original: The folder of what it was made from; None where that is not here.
    """

    folder: Path
    base: Path | None = None
    original: Path | None = None

    @property
    def talks(self) -> bool:
        """Return whether it has a chat template."""
        return has_chat_template(self.folder) or bool(self.base and has_chat_template(self.base))

    def tokenizer(self) -> Any:
        """Return its tokenizer, as it is served.

        Raises:
            SpecError: It will not do.
        """
        return load_tokenizer(self.folder if has_chat_template(self.folder) else whole(self.folder, self.base))


def check(tried: Tried, options: CheckOptions, settings: Settings, report: Report) -> Check:
    """Try a model folder in the engine that serves it; what goes wrong is part of the result.

    Args:
        tried: The folder, and those that belong to it.
        options: Which engine, how much it writes.
        settings: How long a server may take to start; its log lies in a folder that is removed again.
        report: Receives how far it is.
    """
    try:
        tokenizer = tried.tokenizer()
        prompts = prompts_of(tokenizer, tried.talks)
        most = options.max_tokens * (THINKING if abilities(tokenizer).thinks else 1)
        engine, answers = _answers(tried, prompts, options.engine, most, settings, report)
    except AppError as e:
        return Check(passed=False, prompts=len(PROMPTS), reason=str(e))
    found = {"engine": engine, "prompts": len(prompts), "convention": CONVENTION}
    if [answer.read for answer in answers] != [prompt.ids for prompt in prompts]:
        words = "reads a prompt as other tokens than its tokenizer and chat template write"
        return Check(passed=False, reason=f"{engine} {words}.", **found)
    try:
        each, alone = gaps(tried.folder, tried.base, answers, report)
        found |= {"tokens": len(each)}
        if each:
            found |= {"agreement": _share(each, NEAR), "likeliest": _share(each, 0)}
        reason = _fault(engine, each, alone)
        if reason is None:
            shown = symptoms(prompts, answers, tokenizer)
            failures, found["silent"] = _silent(tried.original, prompts, shown, most, report)
            found["findings"] = failures
            reason = " ".join(failures) or None
    except AppError as e:
        reason = str(e)
    return Check(passed=reason is None, reason=reason, **found)


def _silent(
    original: Path | None, prompts: list[Prompt], shown: list[str | None], most: int, report: Report
) -> tuple[tuple[str, ...], str]:
    """Return in which ways answers fail without an error and their original's do not, and how many do at all.

    Args:
        original: The folder of what the model was made from, if it is here; asked only where an answer shows anything.
        prompts: That were asked.
        shown: What symptoms() has found.
        most: Tokens that an answer might have.
        report: Receives how far it is.
    """
    if original is None or not any(shown):
        return (), counted(shown, None, most)
    try:
        tokenizer = load_tokenizer(original)
        asked = prompts_of(tokenizer, has_chat_template(original))
        answers = written(original, tokenizer, asked, most, report)
    except AppError as e:  # it says nothing of the result
        report.log(f"The original was not asked. {e}")
        return (), counted(shown, None, most)
    by_words = dict(zip((prompt.words for prompt in asked), symptoms(asked, answers, tokenizer), strict=True))
    before = [by_words.get(prompt.words, "call") for prompt in prompts]
    return findings(prompts, shown, before, most), counted(shown, before, most)


def _fault(engine: str, each: list[float], alone: list[float]) -> str | None:
    """Say what is wrong with what an engine wrote; None where nothing is.

    Args:
        engine: Its title.
        each: Of each token to the weights, in nats; see gaps().
        alone: To those of the base model alone.
    """
    if not each:
        return f"{engine} answered none of {len(PROMPTS)} prompts."
    if sum(each) - sum(alone) > NEAR:
        return _IGNORED.format(engine)
    share, first = _share(each, NEAR), _share(each, 0)
    if share >= NEEDED and first >= LIKELIEST:
        return None
    return (
        f"Of what {engine} wrote with it, the same weights in transformers find {first:.0%} of the tokens the likeliest"
        f" and {share:.0%} nearly so; {LIKELIEST:.0%} and {NEEDED:.0%} are wanted."
    )


def _share(each: list[float], most: float) -> float:
    return sum(gap <= most for gap in each) / len(each)


def _answers(
    tried: Tried, prompts: list[Prompt], wanted: EngineName, most: int, settings: Settings, report: Report
) -> tuple[str, list[Answer]]:
    """Return the engine that served, and its answer to each prompt."""
    from backend.serve.servers import Servers  # noqa: PLC0415 - this module's options are part of every recipe

    folder = tried.folder
    report.log(f"Loading '{folder.name}' as it will be served.")
    with scratch(settings.data) as place:
        servers = Servers(settings.model_copy(update={"data": place}), lambda _: tried.base)
        try:
            servers.open(folder, wanted, compared=True)
            server = servers.wait(folder, settings.server_start_seconds)
            _refuse_ignored(server)
            found = []
            for done, prompt in enumerate(prompts):
                report.progress(f"asking {server.engine}", done, len(prompts), "prompts")
                room = within(whole(folder, tried.base), most, len(prompt.ids))
                found.append(_answer(server, prompt.asked, room))
            return _title(server), found
        finally:
            servers.stop()


def _title(server: "Server") -> str:
    """Name the engine that serves a model, and say what it serves where that is not what the files hold."""
    engine = ENGINES[server.engine]
    how = engine.unpacks(settings_in(whole(server.folder, server.base), CONFIG))
    return f"{engine.title} ({how})" if how else engine.title


def _refuse_ignored(server: "Server") -> None:
    """Raise JobError where an engine computes with an adapter what it computes with the base model beside it."""
    if server.beside and _first_tokens(server, server.model) == _first_tokens(server, server.beside):
        raise JobError(_IGNORED.format(ENGINES[server.engine].title))


def _first_tokens(server: "Server", model: str) -> list[Any]:
    """Return the token that a model takes first after each prompt, with its log-probability, as the engine has them."""
    asked = ({"model": model, "prompt": continued(prompt), **COMPARED} for prompt in PROMPTS)
    return [_asked(server, "completions", request)["choices"][0]["logprobs"] for request in asked]


def _answer(server: "Server", asked: Mapping[str, Any], most: int) -> Answer:
    request = {"model": server.model, **asked, "max_tokens": most, "temperature": 0, "return_token_ids": True}
    body = _asked(server, "chat/completions" if "messages" in asked else "completions", request)
    [choice] = body["choices"]
    read = choice.get("prompt_token_ids") or body["prompt_token_ids"]
    return Answer(read, choice["token_ids"], choice.get("finish_reason") != "length")


def _asked(server: "Server", route: str, request: dict[str, Any]) -> Any:
    """Return what an engine answers.

    Raises:
        JobError: It fails.
    """
    import httpx

    name = ENGINES[server.engine].title
    try:
        answered = httpx.post(
            f"{server.base_url}/{route}",
            json=request,
            headers={"Authorization": f"Bearer {server.key}"},
            timeout=ANSWER_SECONDS,
        )
    except httpx.HTTPError as e:
        raise JobError(f"{name} ended while it answered, or gave no answer in time.") from e
    if answered.is_error:
        raise JobError(f"{name} loads it and fails at an answer, with status {answered.status_code}.")
    return answered.json()
