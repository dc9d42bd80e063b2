"""What a training does otherwise than its options say, because of the model; each difference in one line."""

from typing import NamedTuple

from backend.finetune.costs import expert_parameters
from backend.finetune.layers import EXPERTS, has_experts, left_out
from backend.finetune.options import FinetuneOptions
from backend.machine.hardware import gpus
from backend.models.config import text_fields, text_type
from backend.models.facts import ModelFacts
from backend.models.native import lacks
from backend.weights.anatomy import is_linear


class Suited(NamedTuple):
    """Options that a model can be tuned with, and what was changed or is left out, a line each."""

    options: FinetuneOptions
    lines: tuple[str, ...]


def suited(options: FinetuneOptions, facts: ModelFacts) -> Suited:
    """Return what a training with these options does with a model; asked again, it says the same.

    Args:
        options: That check() has nothing against.
        facts: Of the base model.
    """
    changes: dict[str, object] = {}
    lines = []
    context, usual = facts.context_length, FinetuneOptions.model_fields["max_length"].default
    if context and context < usual and options.max_length in (context, usual):
        changes["max_length"] = context
        lines.append(f"Rows have {context} tokens at most: the model reads no more.")
    missing = lacking(facts)
    if text_fields(facts.config).get("num_attention_heads") and _attention(options) in missing:
        changes["attn_implementation"] = "eager"
        lines.append("Attention is computed plainly (eager): transformers has no faster way for this kind of model.")
    twice = {"on": True, "off": False, "auto": bool(gpus())}[options.gradient_checkpointing]
    if twice and "gradient_checkpointing" in missing:
        changes["gradient_checkpointing"] = "off"
        lines.append("Layers are not computed twice to save memory: this kind of model cannot do that.")
    if options.target_parameters == "experts" and options.lora_dropout:
        changes["lora_dropout"] = 0.0
        lines.append("Nothing is dropped out: the adapter of experts cannot do that.")
    lines.extend(_left(options, facts))
    return Suited(options.model_copy(update=changes), tuple(lines))


def lacking(facts: ModelFacts) -> frozenset[str]:
    """Return what the classes of a model cannot do, those of a text model within it included; see lacks()."""
    return lacks(facts.model_type) | lacks(text_type(facts.config))


def _attention(options: FinetuneOptions) -> str:
    """Return what transformers calls the ability that attention needs."""
    return {"flash_attention_2": "flash_attn", "eager": ""}.get(options.attn_implementation, "sdpa")


def _left(options: FinetuneOptions, facts: ModelFacts) -> list[str]:
    """Say which layers get no adapter although they are linear, and how much of it experts take."""
    without = left_out(facts)
    names = {tensor.name.split(".")[-2] for tensor in facts.tensors if is_linear(tensor)} & without
    lines = []
    if options.target_parameters == "experts":
        beside = "; the layers of the same names beside them stay as they are" if names & EXPERTS else ""
        lines.append(f"The adapter of all experts has {expert_parameters(facts, options):,} numbers{beside}.")
    elif has_experts(facts):
        shared = " and so do the layers of the same names beside them" if names & EXPERTS else ""
        lines.append(f"The experts stay as they are{shared}: the adapter is for attention and the other shared layers.")
    if others := sorted(names - EXPERTS):
        lines.append(f"{' and '.join(others)} stays as it is: PEFT does not train it in this kind of model.")
    return lines
