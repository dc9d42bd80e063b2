"""Use: how a card says that an artifact is loaded, in transformers and in vLLM."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backend.artifacts.artifact import Artifact
from backend.model_folder import has_chat_template, has_tokenizer
from backend.publish.card.training import AdapterUse
from backend.serve.engine import not_in_vllm, on_base, packages, vllm_serves

HERE = "."
"""What stands for the model where its card lies in a folder and not in a repo."""


def loading(
    folder: Path, model_id: str, config: Mapping[str, Any], use: AdapterUse | None, artifact: Artifact
) -> dict[str, Any]:
    """Give what the template needs to say how an artifact is loaded.

    Args:
        folder: Where its texts lie.
        model_id: What loads it: a repo id, or HERE.
        config: Of the model; empty of an adapter.
        use: Of an adapter.
        artifact: What it is.
    """
    needed = packages((config.get("quantization_config") or {}).get("quant_method", ""))
    more = ["peft", *(["bitsandbytes"] if use.quantization else [])] if use else needed
    own_tokenizer = has_tokenizer(path.name for path in folder.iterdir())
    return {
        "model_id": model_id,
        "packages": " ".join(["transformers", "torch", "accelerate", *more]),
        "needed": needed,
        "own_tokenizer": own_tokenizer,
        "chat_template": has_chat_template(folder),
        "vllm": _vllm(folder, model_id, config, use, artifact) if own_tokenizer else None,
    }


def _vllm(
    folder: Path, model_id: str, config: Mapping[str, Any], use: AdapterUse | None, artifact: Artifact
) -> str | None:
    """Give the lines that serve it in vLLM on any machine that has one; none where that does not serve it."""
    if use is None:
        return f"vllm serve {model_id}" if vllm_serves(config) else None
    if artifact.base_model is None or not_in_vllm(folder):
        return None
    name = "adapter" if model_id == HERE else model_id.split("/")[-1]
    place = HERE if model_id == HERE else name
    fetched = [] if model_id == HERE else [f"hf download {model_id} --local-dir {place}"]
    revision = f" --revision {use.revision}" if use.revision else ""
    arguments = " ".join(on_base(folder, name, place))
    return "\n".join([*fetched, f"vllm serve {artifact.base_model}{revision} {arguments}"])
