"""How the command line says what was made, measured and estimated, to a person and to a script."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from backend.artifacts.artifact import Artifact, Metrics
from backend.artifacts.compared import ComparedRow
from backend.models.facts import ModelFacts

if TYPE_CHECKING:
    from backend.stages.estimate import Estimate


def model_words(facts: ModelFacts) -> str:
    """Say what a model is."""
    pickled = ", pickled: a step `convert` makes safetensors first" if facts.pickled else ""
    ships = f", {facts.encoding}: decoded where it is read" if facts.encoding else ""
    size = f"{facts.size / 1e6:.0f} MB{pickled}{ships}"
    return f"{facts.architecture}, {facts.parameters / 1e6:.0f} M parameters, {size}"


def needs(needed: "Estimate") -> str:
    """Say what a recipe would need; of a training the memory by part."""
    text = (
        f"result {needed.output_bytes / 1e6:.0f} MB, disk {needed.disk_bytes / 1e6:.0f} MB, peak memory"
        f" {needed.peak_memory_bytes / 1e6:.0f} MB, about {needed.seconds:.0f} s and the download"
    )
    for place, parts in needed.training_memory.items():
        listed = ", ".join(f"{part} {size / 1e6:.0f} MB" for part, size in parts.items())
        text += f"\nthe training's {place}: {listed}"
    return "\n".join([text, *needed.notes, *needed.warnings])


def summary(artifact: Artifact) -> dict[str, Any]:
    """Return what a script wants to know of an artifact."""
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
    measured = [artifact.metrics.words] if artifact.metrics else []
    measured += [artifact.training.words] if artifact.training else []
    measured += [artifact.check.words] if artifact.check else []
    return "\n".join([made, *measured, *artifact.warnings])


def worst_words(metrics: Metrics | None, worst: Sequence[ComparedRow]) -> list[str]:
    """Write the rows that a model answers worst, if any were compared."""
    if not (metrics and metrics.rows and worst):
        return []
    names = [one.name for one in metrics.rows.models]
    return [f"The {len(worst)} rows that it answers worst:", *(row.words(names) for row in worst)]


def worst_data(worst: Sequence[ComparedRow]) -> dict[str, Any]:
    """Return the same for a script."""
    return {"worst_rows": [row.model_dump() for row in worst]} if worst else {}
