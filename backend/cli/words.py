"""How the command line says what was made, measured and reckoned, to a person and to a script."""

from typing import TYPE_CHECKING, Any

from backend.artifacts.artifact import Artifact, Check, Training
from backend.models.facts import ModelFacts

if TYPE_CHECKING:
    from backend.stages.estimate import Estimate


def model_words(facts: ModelFacts) -> str:
    """Say what a model is."""
    pickled = ", pickled: a step `convert` makes safetensors first" if facts.pickled else ""
    return f"{facts.architecture}, {facts.parameters / 1e6:.0f} M parameters, {facts.size / 1e6:.0f} MB{pickled}"


def needs(needed: "Estimate") -> str:
    """Say what a recipe would need; of a training the memory by part."""
    text = (
        f"result {needed.output_bytes / 1e6:.0f} MB, disk {needed.disk_bytes / 1e6:.0f} MB, peak memory"
        f" {needed.peak_memory_bytes / 1e6:.0f} MB, about {needed.seconds:.0f} s and the download"
    )
    for place, parts in needed.training_memory.items():
        listed = ", ".join(f"{part} {size / 1e6:.0f} MB" for part, size in parts.items())
        text += f"\nthe training's {place}: {listed}"
    return "\n".join([text, *needed.warnings])


def summary(artifact: Artifact) -> dict[str, Any]:
    """Give what a script wants to know of an artifact."""
    return {
        "size": artifact.size,
        "seconds": artifact.seconds,
        "peak_memory_bytes": artifact.peak_memory_bytes,
        "metrics": artifact.metrics.model_dump() if artifact.metrics else None,
        "warnings": artifact.warnings,
    }


def words(artifact: Artifact) -> str:
    """Say the same to a person."""
    made = f"{artifact.size / 1e6:.0f} MB, made in {artifact.seconds:.0f} s"
    measured = [quality(artifact.metrics.model_dump())] if artifact.metrics else []
    measured += [learned(artifact.training)] if artifact.training else []
    measured += [checked(artifact.check)] if artifact.check else []
    return "\n".join([made, *measured, *artifact.warnings])


def checked(check: Check) -> str:
    """Say what came of trying a model in its engine."""
    if not check.passed:
        return f"The check failed. {check.reason}"
    return (
        f"Checked in {check.engine}: {check.agreement:.0%} of {check.tokens} tokens that it wrote are what its weights"
        " say."
    )


def learned(training: Training) -> str:
    """Say what a training has changed."""
    text = f"{training.steps} steps on {training.rows} rows, mean loss {training.train_loss:.3f}"
    if training.eval_loss is not None:
        text += f"; validation loss {training.eval_loss_before:.3f} before, {training.eval_loss:.3f} after"
    return f"{text}. {training.stopped}" if training.stopped else text


def quality(metrics: dict[str, Any]) -> str:
    """Say how much a model got worse."""
    return (
        f"perplexity {metrics['perplexity']:.2f} (reference {metrics['reference_perplexity']:.2f}), KL mean"
        f" {metrics['kl_mean']:.4f}, 99th percentile {metrics['kl_p99']:.3f}, top-1 agreement"
        f" {metrics['top1_agreement']:.1%}, {metrics['tokens']} tokens of {metrics['text']}"
    )
