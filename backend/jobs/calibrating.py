"""What a calibrated quantization reads: the rows or text that it names, rows trained on, or embedded prose."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backend.finetune.dataset import DatasetOptions, is_file
from backend.finetune.fetch import fetch_dataset, read_sources, write_sources
from backend.finetune.loading import Dataset, load
from backend.finetune.rendering import Renderer
from backend.jobs.results import TOKENIZERS, Base
from backend.models.demo import TEXT, calibration_text
from backend.models.loading import load_tokenizer, read_config
from backend.progress import Report
from backend.quantize.calibrated.options import CalibratedOptions
from backend.quantize.calibration import Windows, judge, text_windows, windows_of
from backend.recipes import Recipe

PROSE = (".txt", ".md")
"""Endings of files that are read as one text, not as rows."""

EMBEDDED = f"{TEXT}, every second topic"

_UNCUT = 10**9


def rows_of(options: CalibratedOptions) -> DatasetOptions:
    """Give the data set that a quantization calibrates on; faulty and repeated rows are left out."""
    assert options.calibration
    return DatasetOptions.model_construct(
        dataset=options.calibration,
        revision=options.calibration_revision,
        on_fault="drop",
        drop_duplicates=True,
        allow_identical=True,
        parse_json=True,
    )


def fetch_calibration(recipe: Recipe, folder: Path, token: str | None, report: Report) -> None:
    """Bring the rows that each quantization of a recipe names.

    Args:
        recipe: What is done.
        folder: Of the fetch step, not sealed yet.
        token: Of who asks.
        report: Told the bytes.
    """
    for index, options in _named(recipe):
        place = folder / f"calibration-{index}"
        place.mkdir()
        write_sources(place, fetch_dataset(rows_of(options), place, token, report))


def _named(recipe: Recipe) -> Iterator[tuple[int, CalibratedOptions]]:
    for index, stage in enumerate(recipe.stages, 1):
        if isinstance(stage, CalibratedOptions) and stage.calibration and not is_prose(stage.calibration):
            yield index, stage


def is_prose(calibration: str) -> bool:
    """Whether what is named is a plain text of this machine."""
    return is_file(calibration) and calibration.lower().endswith(PROSE)


def windows(recipe: Recipe, options: CalibratedOptions, base: Base, fetched: Path, report: Report) -> Windows:
    """Give what a quantization calibrates on.

    Args:
        recipe: What is done.
        options: The stage's.
        base: The base model, with the adapters that are merged into it.
        fetched: The fetch step's folder.
        report: Told how much there is.

    Raises:
        SpecError: There is too little, or rows leave a question open.
    """
    copied = base.copied()
    folder = next((copied[name].folder for name in TOKENIZERS if name in copied), base.folder)
    tokenizer = load_tokenizer(folder)
    config = read_config(base.folder)
    limit = config.get("max_position_embeddings") or config.get("n_positions") or options.max_seq_length
    samples, length = options.num_calibration_samples, min(options.max_seq_length, limit)
    if length < options.max_seq_length:
        report.log(f"The model reads {limit} tokens at the most: the windows have that length.")
    if options.calibration and is_prose(options.calibration):
        path = Path(options.calibration)
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        found = text_windows(path.name, text, tokenizer, samples, length)
    elif options.calibration or recipe.tuning:
        data = _rows(recipe, options, fetched)
        found = windows_of(data.examination.name, _tokens(data, tokenizer), tokenizer, samples, length)
    else:
        found = text_windows(EMBEDDED, calibration_text(), tokenizer, samples, length)
    judge(found, samples, report)
    return found


def _rows(recipe: Recipe, options: CalibratedOptions, fetched: Path) -> Dataset:
    if options.calibration:
        place = fetched / f"calibration-{recipe.stages.index(options) + 1}"
        return load(read_sources(place).train, rows_of(options))
    assert recipe.tuning
    return load(read_sources(fetched).train, recipe.tuning)


def _tokens(data: Dataset, tokenizer: Any) -> Iterator[list[int]]:
    """Give the tokens of each row: through the chat template, or where there is none, of its texts."""
    renderer = Renderer(tokenizer, "all", _UNCUT, ())
    for sample in data.train():
        if sample.messages and not tokenizer.chat_template:
            text = "\n\n".join(message.content for message in sample.messages)
            yield tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            yield renderer.render(sample).input_ids
