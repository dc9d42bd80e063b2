"""The weights in transformers, the reference forward: what they think of answers, and what an original answers.

Inputs of layers are rounded where engines round them.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backend.check.failures import Answer
from backend.check.prompts import Prompt
from backend.errors import SpecError
from backend.model_folder import is_adapter, read_config
from backend.models.config import context_length
from backend.models.loading import in_our_words, pad_within, refuse_idle
from backend.progress import Report
from backend.quantize.engine_rounding import round_as_engines
from backend.quantize.packed import load

COMPARED_TOKENS = 24
"""Of each answer that the weights read: what an engine computes wrongly shows in the first."""


def whole(folder: Path, base: Path | None) -> Path:
    """Return the folder with the whole model: of an adapter its base model's."""
    return base if base and is_adapter(folder) else folder


def gaps(folder: Path, base: Path | None, answers: Sequence[Answer], report: Report) -> tuple[list[float], list[float]]:
    """Return how much likelier than each token that was written the likeliest one is to the weights, in nats.

    Returns:
        To all of the weights; and to those of an adapter's base model alone, the same where it is no adapter.
    """
    place = whole(folder, base)
    model = load(place, report)
    round_as_engines(model, place)
    if place == folder:
        found = _each(model, answers, report)
        return found, found
    model = _with_adapter(model, folder)
    found = _each(model, answers, report)
    with model.disable_adapter():
        return found, _each(model, answers, report)


def _each(model: Any, answers: Sequence[Answer], report: Report) -> list[float]:
    import torch

    penalty = getattr(model.generation_config, "repetition_penalty", None) or 1.0
    gaps = []
    for done, answer in enumerate(answers):
        report.progress("reading answers", done, len(answers), "prompts")
        read = answer.read
        ids = [*read, *answer.written[:COMPARED_TOKENS]]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0].float().cpu()
            for at in range(len(read), len(ids)):
                scores = _scores(logits[at - 1], ids[:at], penalty)
                gaps.append(float(scores.max() - scores[ids[at]]))
    return gaps


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


def written(folder: Path, tokenizer: Any, prompts: Sequence[Prompt], most: int, report: Report) -> list[Answer]:
    """Return what a model answers to prompts, always with the likeliest token.

    Args:
        folder: Of the model.
        tokenizer: Its own; changed.
        prompts: That it is asked.
        most: Tokens of an answer at most.
        report: Receives the tensors loaded.
    """
    report.log(f"Asking the original '{folder.name}' too.")
    model = load(folder, report)
    tokenizer.padding_side = "left"
    pad_within(tokenizer, model.config.get_text_config().vocab_size)
    batch = tokenizer.pad({"input_ids": [prompt.ids for prompt in prompts]}, return_tensors="pt").to(model.device)
    length = batch["input_ids"].shape[1]
    with in_our_words(f"Asking '{folder.name}'", "choose a model that transformers can generate with"):
        found = model.generate(**batch, max_new_tokens=within(folder, most, length), do_sample=False)
    made = found[:, length:].tolist()
    stops = model.generation_config.eos_token_id or []
    ends = [next((i for i, token in enumerate(ids) if token in stops), None) for ids in made]
    return [
        Answer(prompt.ids, ids if end is None else ids[: end + 1], end is not None)
        for prompt, ids, end in zip(prompts, made, ends, strict=True)
    ]


def within(folder: Path, most: int, read: int) -> int:
    """Return the tokens of an answer to so many that have been read, where a model reads no more than its context.

    Args:
        folder: Of the model, with its config.
        most: Tokens that are wanted.
        read: Tokens before it.
    """
    context = context_length(read_config(folder))
    return max(1, min(most, context - read)) if context else most
