"""What lies beside the weights of a result: tokenizer, licenses, recipe, and what is recorded of how it was made."""

import resource
import shutil
from pathlib import Path
from typing import NamedTuple

from backend.models.artifacts import Artifact, now, versions
from backend.models.machine import hardware
from backend.options import Frozen
from backend.progress import Report
from backend.publish.base_card import carry_over
from backend.recipes import Recipe

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
COMPANIONS = ("tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
              "chat_template.*", "generation_config.json", "*.model")  # fmt: skip


class Base(NamedTuple):
    """What a result is made from."""

    folder: Path  # config, tokenizer, card and licenses
    origin: Artifact  # what is known of where it came from
    weights_bytes: int = 0  # size of the weight files, where these do not lie in the folder


def complete(recipe: Recipe, options: Frozen, base: Base, output: Path, report: Report) -> Artifact:
    """Add to weights that are written what belongs beside them, and give what is to be recorded.

    Args:
        recipe: What is done.
        options: Of the stage that wrote them.
        base: What they were made from.
        output: Their folder.
        report: Its warnings stay with the artifact.
    """
    _copy_companions(base.folder, output)
    carry_over(base.folder, output, base.weights_bytes)
    if not any((output / name).is_file() for name in TOKENIZERS):
        report.warn("The model came without a tokenizer: it can be neither measured nor chatted with.")
    public = recipe.public(base.origin.base_model or base.folder.name)
    (output / "recipe.yaml").write_text(public.to_yaml(), encoding="utf-8")
    return Artifact(
        kind="quantized",
        stage="quantize",
        base_model=base.origin.base_model,
        revision=base.origin.revision,
        origin=base.origin.origin,
        options=options.model_dump(mode="json", exclude_none=True),
        versions=versions(),
        hardware=hardware(),
        peak_memory_bytes=peak_memory(),
        warnings=tuple(report.warnings),
        created=now(),
    )


def peak_memory() -> int:
    """Give the peak resident memory of this process in bytes (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _copy_companions(base: Path, folder: Path) -> None:
    """Copy tokenizer and templates byte for byte: saving them again through a library can change them."""
    for pattern in COMPANIONS:
        for path in base.glob(pattern):
            if not (folder / path.name).exists():
                shutil.copyfile(path, folder / path.name)
