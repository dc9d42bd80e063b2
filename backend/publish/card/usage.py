"""Use: how a card says that an artifact is loaded in transformers, and which engines serve it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backend.artifacts.artifact import Artifact
from backend.model_folder import has_chat_template, has_tokenizer
from backend.models.config import auto_class_name
from backend.models.towers import tower_package
from backend.publish.card.training import AdapterUse
from backend.quantize.formats import readers
from backend.serve.engine import CardLines, Shown
from backend.serve.engines import ENGINES


def loading(
    folder: Path, model_id: str, config: Mapping[str, Any], use: AdapterUse | None, artifact: Artifact
) -> dict[str, Any]:
    """Return what the template needs to say how an artifact is loaded.

    Args:
        folder: Where its texts lie.
        model_id: What loads it: a repo id, or HERE.
        config: Of the model; empty of an adapter.
        use: Of an adapter.
        artifact: What it is.
    """
    reading = readers(config)["transformers"]
    needed = reading.packages
    more = list(needed)
    if use:
        more = ["peft", "bitsandbytes"] if use.quantization else ["peft"]
    more += filter(None, [tower_package(config)])
    own_tokenizer = has_tokenizer(path.name for path in folder.iterdir())
    return {
        "model_id": model_id,
        "refusal": reading.refusal,
        "auto_class": auto_class_name(config),
        "packages": " ".join(["transformers", "torch", "accelerate", *more]),
        "needed": needed,
        "told": reading.told,
        "own_tokenizer": own_tokenizer,
        "chat_template": has_chat_template(folder),
        "served": _served(folder, model_id, config, use, artifact) if own_tokenizer else [],
    }


def _served(
    folder: Path, model_id: str, config: Mapping[str, Any], use: AdapterUse | None, artifact: Artifact
) -> list[CardLines]:
    """Return the lines of each engine that serves it on any machine that has that engine."""
    shown = Shown(folder, model_id, config)
    if use:
        shown = Shown(folder, model_id, {}, artifact.base_model, use.revision, bool(use.quantization))
    return [lines for engine in ENGINES.values() if (lines := engine.card(shown))]
