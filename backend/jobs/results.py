"""What lies beside the weights of a result: tokenizer, licenses, recipe, and what is recorded of how it was made."""

import resource
import shutil
from pathlib import Path
from typing import NamedTuple

from backend.merge import record
from backend.models.artifacts import Artifact, now, versions
from backend.models.loading import has_chat_template
from backend.models.machine import hardware
from backend.progress import Report
from backend.publish.base_card import carry_over
from backend.recipes import Recipe, Stage

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
COMPANIONS = ("tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
              "chat_template.*", "generation_config.json", "*.model")  # fmt: skip


class Base(NamedTuple):
    """What a result is made from."""

    folder: Path  # config, tokenizer, card and licenses
    origin: Artifact  # what is known of where it came from
    weights_bytes: int = 0  # size of the weight files, where these do not lie in the folder
    adapters: tuple[Path, ...] = ()  # folders of what was merged into it


def complete(recipe: Recipe, options: Stage, base: Base, output: Path, report: Report) -> Artifact:
    """Add to weights that are written what belongs beside them, and give what is to be recorded.

    Args:
        recipe: What is done.
        options: Of the stage that wrote them.
        base: What they were made from.
        output: Their folder.
        report: Its warnings stay with the artifact.
    """
    _copy_companions([*base.adapters, base.folder], output)
    carry_over(base.folder, output, base.weights_bytes)
    if not any((output / name).is_file() for name in TOKENIZERS):
        report.warn("The model came without a tokenizer: it can be neither measured nor chatted with.")
    public = recipe.public(base.origin.base_model or base.folder.name)
    (output / "recipe.yaml").write_text(public.to_yaml(), encoding="utf-8")
    merging = recipe.merging
    return Artifact(
        kind="merged" if options is merging else "quantized",
        stage="merge" if options is merging else "quantize",
        base_model=base.origin.base_model,
        revision=base.origin.revision,
        origin=base.origin.origin,
        merged=record(base.adapters, merging) if merging else None,
        options=public.stages[recipe.stages.index(options)].model_dump(mode="json", exclude_none=True),
        versions=versions(),
        hardware=hardware(),
        peak_memory_bytes=peak_memory(),
        warnings=tuple(report.warnings),
        created=now(),
    )


def peak_memory() -> int:
    """Give the peak resident memory of this process in bytes (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _copy_companions(sources: list[Path], folder: Path) -> None:
    """Copy tokenizer and templates byte for byte: saving them again through a library can change them.

    Args:
        sources: The adapters, then the base model. The tokenizer comes whole from the first that has one; a chat
            template too, and where that brought none from the first that has one.
        folder: Where to.
    """
    first = next((s for s in sources if any((s / name).is_file() for name in TOKENIZERS)), sources[-1])
    _copy(first, folder, COMPANIONS)
    for source in sources:
        if not has_chat_template(folder):
            _copy(source, folder, ("chat_template.*",))
    _copy(sources[-1], folder, ("generation_config.json",))


def _copy(source: Path, folder: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        for path in source.glob(pattern):
            if not (folder / path.name).exists():
                shutil.copyfile(path, folder / path.name)
