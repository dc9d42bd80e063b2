"""Metadata: the front matter of a card, from what an artifact and its base's card say; what is not known is left out.

Keys as the Hub documents them (hub-docs, model-cards.md).
"""

import re
from typing import TYPE_CHECKING, Any

from backend.artifacts.artifact import ELSEWHERE, Artifact
from backend.hub.ids import parse_repo_id
from backend.publish.card.base_card import BaseCard
from backend.publish.card.languages import hub_languages
from backend.publish.card.training import hub_dataset

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

HUB_ID = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
REPO_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)

_OWN = re.compile(r"\A\s*---[ \t]*\r?\n.*?\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


def metadata(artifact: Artifact, base: BaseCard, task: str | None, title: str, loads: bool) -> "ModelCardData":
    """Return the front matter of an artifact's card.

    Args:
        artifact: What it is.
        base: What is said of its base model.
        task: What the Hub calls its task.
        title: Of the card.
        loads: Whether transformers loads it: the Hub shows lines of the library that is named.
    """

    from huggingface_hub import ModelCardData

    found = artifact.stage == ELSEWHERE
    bases = list(base.base_model) if found else []
    if artifact.base_model:
        bases = [artifact.base_model]
    relation = _relation(artifact, base) if bases else None
    library = "transformers" if loads else None
    if artifact.kind == "adapter":
        library = "peft"
    return ModelCardData(
        base_model=_scalar(bases) if relation or found else None,
        base_model_relation=relation,
        license=_scalar(base.license),
        license_name=base.license_name,
        license_link=license_link(base, artifact),
        language=hub_languages(base.language) or None,
        datasets=_datasets(artifact, base) or None,
        library_name=library,
        pipeline_tag=task,
        tags=list(dict.fromkeys([*base.tags, *(["lora"] if is_lora(artifact) else []), "weightsmith"])),
        model_name=title if artifact.metrics else None,
        eval_results=_results(artifact),
    )


def with_body(card: str, body: str) -> str:
    """Put a user's own text under the front matter of a card; front matter typed before the text is not taken.

    Args:
        card: As build_card() writes it.
        body: Markdown, as the user wrote it.
    """
    head, _ = split_card(card)
    return f"---\n{head}\n---\n\n{_OWN.sub('', body.removeprefix(chr(0xFEFF))).strip()}\n"


def split_card(card: str) -> tuple[str, str]:
    """Return the front matter of a card that build_card() wrote, without the lines around it, and its text."""
    front = _FRONT.match(card)
    assert front
    return front[1], card[front.end() :].lstrip("\n")


def license_link(base: BaseCard, artifact: Artifact) -> str | None:
    """Return the license's address: a file that lies here, or the base's own, never a file that nobody gets."""
    link = base.license_link
    if link is None or link.startswith("http") or link in artifact.files:
        return link
    if artifact.base_model is None:
        return None
    return f"https://huggingface.co/{artifact.base_model}/blob/{artifact.revision or 'main'}/{link}"


def is_lora(artifact: Artifact) -> bool:
    """Return whether an artifact is an adapter of the kind that is trained here, and not of another that PEFT knows."""
    return artifact.kind == "adapter" and artifact.options.get("peft_type", "LORA") == "LORA"


def _relation(artifact: Artifact, base: BaseCard) -> str | None:
    """Return what the Hub calls an artifact's relation to its base model: a training weighs more than the bits."""
    if artifact.stage == ELSEWHERE and artifact.kind != "adapter" and base.base_model_relation:
        return base.base_model_relation
    if artifact.merged:
        return "finetune" if len(artifact.merged.adapters) == 1 else "merge"
    return artifact.kind if artifact.kind in ("quantized", "adapter") else None


def _datasets(artifact: Artifact, base: BaseCard) -> list[str]:
    """Name what the published weights have learned from, as far as all of it is known."""
    if (artifact.kind == "adapter" and artifact.stage != ELSEWHERE) or artifact.merged:
        found = hub_dataset(artifact.training)
        return [found] if found else []
    return [name for name in base.datasets if _is_id(name)]


def _is_id(name: str) -> bool:
    """Return whether the Hub takes a name for a repo's id: it refuses the whole commit for another."""
    try:
        return parse_repo_id(name) == name
    except ValueError:
        return False


def _results(artifact: Artifact) -> "list[EvalResult] | None":
    from huggingface_hub import EvalResult

    metrics = artifact.metrics
    if metrics is None:
        return None
    named = REPO_ID.search(metrics.text)
    measured = [
        ("perplexity", "Perplexity", metrics.perplexity),
        ("kl_divergence", "Mean KL divergence from the original, nats a token", metrics.kl_mean),
        ("top1_agreement", "Top-1 agreement with the original", metrics.top1_agreement),
    ]
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=named[0] if named else re.sub(r"\W+", "-", metrics.text.lower()).strip("-")[:100] or "text",
            dataset_name=" ".join(metrics.text.split())[:200],
            metric_type=kind,
            metric_name=" ".join(f"{name} ({metrics.convention})".split())[:400],
            metric_value=round(value, 4),
        )
        for kind, name, value in measured
    ]


def _scalar(values: Any) -> Any:
    return list(values) if len(values) > 1 else next(iter(values), None)
