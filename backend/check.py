"""The check before publishing: does the engine that will serve an artifact load it, and say what its weights say?

The engine answers fixed prompts, each time with the likeliest token. The same weights then read every answer in
transformers, the reference forward: a token counts as theirs if it is the likeliest there too, or all but so, for an
engine that computes in other kernels decides near ties in another way. An engine that reads packed weights in a wrong
order, or with other zeros, writes what the weights never would.

An adapter must change what the engine computes. Where an engine serves the base model beside it, both say how likely
the first token is that they take after each prompt: they must differ, be it in the last bit. Another engine's answers
must lie nearer to the weights with the adapter than to those without.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from backend.artifacts.artifact import Check
from backend.disk import scratch
from backend.errors import AppError, JobError, SpecError
from backend.evaluate import PROMPTS
from backend.model_folder import CONFIG, has_chat_template, is_adapter, settings_in
from backend.models.chat_template import chat_text
from backend.models.loading import in_our_words, load_tokenizer, refuse_idle
from backend.progress import Report
from backend.quantize.packed import load
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

NEEDED, LIKELIEST = 0.9, 0.75
"""Shares of the tokens of all answers that must count so, and that must be the very likeliest."""

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
    max_tokens: int = Field(24, ge=4, le=256, description="Tokens an answer may have.")


def check(folder: Path, base: Path | None, options: CheckOptions, settings: Settings, report: Report) -> Check:
    """Try a model folder in the engine that serves it; what goes wrong is part of the result.

    Args:
        folder: Of a model, or of an adapter.
        base: Of an adapter, the folder of its base model.
        options: Which engine, how much it writes.
        settings: How long a server may take to start; its log lies in a folder that is removed again.
        report: Receives how far it is.
    """
    try:
        prompts = _prompts(folder, base)
        engine, answers = _answers(folder, base, options, settings, report)
    except AppError as e:
        return Check(passed=False, prompts=len(PROMPTS), reason=str(e))
    found = {"engine": engine, "prompts": len(PROMPTS), "convention": CONVENTION}
    if [answer.read for answer in answers] != prompts:
        words = "reads a prompt as other tokens than its tokenizer and chat template write"
        return Check(passed=False, reason=f"{engine} {words}.", **found)
    try:
        gaps, alone = _gaps(folder, base, answers, report)
    except AppError as e:
        return Check(passed=False, reason=str(e), **found)
    found |= {"tokens": len(gaps)}
    if gaps:
        found |= {"agreement": _share(gaps, NEAR), "likeliest": _share(gaps, 0)}
    reason = _fault(engine, gaps, alone)
    return Check(passed=reason is None, reason=reason, **found)


def _fault(engine: str, gaps: list[float], alone: list[float]) -> str | None:
    """Say what is wrong with what an engine wrote; None where nothing is.

    Args:
        engine: Its title.
        gaps: Of each token to the weights, in nats; see _gaps().
        alone: To those of the base model alone.
    """
    if not gaps:
        return f"{engine} answered none of {len(PROMPTS)} prompts."
    if sum(gaps) - sum(alone) > NEAR:
        return _IGNORED.format(engine)
    share, first = _share(gaps, NEAR), _share(gaps, 0)
    if share >= NEEDED and first >= LIKELIEST:
        return None
    return (
        f"Of what {engine} wrote with it, the same weights in transformers find {first:.0%} of the tokens the likeliest"
        f" and {share:.0%} nearly so; {LIKELIEST:.0%} and {NEEDED:.0%} are wanted."
    )


def _share(gaps: list[float], most: float) -> float:
    return sum(gap <= most for gap in gaps) / len(gaps)


class _Answer(NamedTuple):
    """What an engine read and wrote, as tokens."""

    read: list[int]
    written: list[int]


def _answers(
    folder: Path, base: Path | None, options: CheckOptions, settings: Settings, report: Report
) -> tuple[str, list[_Answer]]:
    """Return the engine that served, and its answer to each prompt."""
    from backend.serve.servers import Servers  # noqa: PLC0415 - this module's options are part of every recipe

    report.log(f"Loading '{folder.name}' as it will be served.")
    with scratch(settings.data) as place:
        servers = Servers(settings.model_copy(update={"data": place}), lambda _: base)
        try:
            servers.open(folder, options.engine, compared=True)
            server = servers.wait(folder, settings.server_start_seconds)
            _refuse_ignored(server)
            found = []
            for done, prompt in enumerate(PROMPTS):
                report.progress(f"asking {server.engine}", done, len(PROMPTS), "prompts")
                found.append(_answer(server, prompt, options.max_tokens))
            return _title(server), found
        finally:
            servers.stop()


def _title(server: "Server") -> str:
    """Name the engine that serves a model, and say what it serves where that is not what the files hold."""
    engine = ENGINES[server.engine]
    how = engine.unpacks(settings_in(_whole(server.folder, server.base), CONFIG))
    return f"{engine.title} ({how})" if how else engine.title


def _refuse_ignored(server: "Server") -> None:
    """Raise JobError where an engine computes with an adapter what it computes with the base model beside it."""
    if server.beside and _first_tokens(server, server.model) == _first_tokens(server, server.beside):
        raise JobError(_IGNORED.format(ENGINES[server.engine].title))


def _first_tokens(server: "Server", model: str) -> list[Any]:
    """Return the token that a model takes first after each prompt, with its log-probability, as the engine has them."""
    asked = ({"model": model, "prompt": _continued(prompt), **COMPARED} for prompt in PROMPTS)
    return [_asked(server, "completions", request)["choices"][0]["logprobs"] for request in asked]


def _answer(server: "Server", prompt: str, most: int) -> _Answer:
    talks = _talks(server.folder, server.base)
    asked = {"messages": [_turn(prompt)]} if talks else {"prompt": _continued(prompt)}
    request = {"model": server.model, **asked, "max_tokens": most, "temperature": 0, "return_token_ids": True}
    body = _asked(server, "chat/completions" if talks else "completions", request)
    [choice] = body["choices"]
    return _Answer(choice.get("prompt_token_ids") or body["prompt_token_ids"], choice["token_ids"])


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
            timeout=600,
        )
    except httpx.HTTPError as e:
        raise JobError(f"{name} ended while it answered, or gave no answer in time.") from e
    if answered.is_error:
        raise JobError(f"{name} loads it and fails at an answer, with status {answered.status_code}.")
    return answered.json()


def _turn(prompt: str) -> dict[str, str]:
    return {"role": "user", "content": prompt}


def _talks(folder: Path, base: Path | None) -> bool:
    return has_chat_template(folder) or bool(base and has_chat_template(base))


def _continued(prompt: str) -> str:
    """Write a prompt for a model that only continues text."""
    return f"Question: {prompt}\nAnswer:"


def _prompts(folder: Path, base: Path | None) -> list[list[int]]:
    """Return the tokens of each prompt, as a model should read it.

    Raises:
        SpecError: Its tokenizer or its chat template will not do.
    """
    tokenizer = load_tokenizer(folder if has_chat_template(folder) else _whole(folder, base))
    return [_tokens(tokenizer, prompt, _talks(folder, base)) for prompt in PROMPTS]


def _whole(folder: Path, base: Path | None) -> Path:
    """Return the folder with the whole model: of an adapter its base model's."""
    return base if base and is_adapter(folder) else folder


def _gaps(folder: Path, base: Path | None, answers: list[_Answer], report: Report) -> tuple[list[float], list[float]]:
    """Return how much likelier than each token that was written the likeliest one is to the weights, in nats.

    Returns:
        To all of the weights; and to those of an adapter's base model alone, the same where it is no adapter.
    """
    whole = _whole(folder, base)
    model = load(whole, report)
    if whole == folder:
        found = _each(model, answers, report)
        return found, found
    model = _with_adapter(model, folder)
    found = _each(model, answers, report)
    with model.disable_adapter():
        return found, _each(model, answers, report)


def _each(model: Any, answers: list[_Answer], report: Report) -> list[float]:
    import torch

    penalty = getattr(model.generation_config, "repetition_penalty", None) or 1.0
    gaps = []
    for done, (read, written) in enumerate(answers):
        report.progress("reading answers", done, len(answers), "prompts")
        ids = [*read, *written]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0].float().cpu()
            for at in range(len(read), len(ids)):
                scores = _scores(logits[at - 1], ids[:at], penalty)
                gaps.append(float(scores.max() - scores[ids[at]]))
    return gaps


def _tokens(tokenizer: Any, prompt: str, talks: bool) -> list[int]:
    """Return the tokens of a prompt, as a model reads it."""
    text, special = _continued(prompt), True
    if talks:
        text, special = chat_text(tokenizer, [_turn(prompt)], prompt=True), False
    ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
    return ids


def _scores(logits: Any, before: list[int], penalty: float) -> Any:
    """Return log-probabilities as an engine chooses by them: a model's folder can ask to penalize repetition."""
    import torch

    if penalty != 1.0:
        used = torch.tensor(sorted(set(before)))
        logits[used] = torch.where(logits[used] > 0, logits[used] / penalty, logits[used] * penalty)
    return logits.log_softmax(-1)


def _with_adapter(model: Any, adapter: Path) -> Any:
    """Return a model with an adapter, as PEFT loads it.

    Raises:
        SpecError: It changes nothing, or not all of it is loaded.
    """
    from peft import PeftModel

    again = "tune again, or save the adapter again with PEFT"
    with warnings.catch_warnings(), in_our_words(f"Loading the adapter '{adapter.name}'", again):
        warnings.filterwarnings("error", "Found missing adapter keys")
        try:
            loaded = PeftModel.from_pretrained(model, adapter, is_trainable=False).eval()
        except UserWarning as e:
            raise SpecError(
                f"'{adapter.name}' lacks weights that its settings speak of: save the adapter again."
            ) from e
    refuse_idle(loaded, adapter.name)
    return loaded
