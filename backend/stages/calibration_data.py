"""What a calibrated quantization reads: the rows that it names, rows trained on, or the embedded texts.

Rows that the recipe trains on are read together with the embedded texts; of them, those alone that are trained on.
"""

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from backend.data.examine import Dataset, load
from backend.data.fetch import read_sources
from backend.data.findings import Finding, Ledger, refusal
from backend.data.samples import Sample
from backend.disk import scratch
from backend.errors import SpecError
from backend.evaluate import Text
from backend.finetune.rendered import rendered
from backend.models.loading import check_embedded, load_tokenizer, window_length
from backend.options import faults_of
from backend.progress import Report
from backend.quantize.calibrated.options import CalibratedOptions
from backend.quantize.calibrated.windows import Windows, check_apart, doubts, joined, unsuited, windows_of
from backend.recipes import Recipe
from backend.stages.companions import Base
from backend.stages.embedded_text import Talks, embedded_windows

HEARD = 200
"""Rows trained on whose language is looked at."""

HELD_BACK = 4
"""Windows that decide whether refined scales are better."""


def windows(
    recipe: Recipe, options: CalibratedOptions, base: Base, fetched: Path, measured: Text | None, report: Report
) -> Windows:
    """Return what a quantization calibrates on.

    Args:
        recipe: What is done.
        options: The stage's.
        base: The base model, with the adapters that are merged into it.
        fetched: The fetch step's folder.
        measured: What quality is measured on, if it is.
        report: Receives how much there is, and what is doubtful about it.

    Raises:
        SpecError: There is too little, rows leave a question open, or quality is measured on the same text.
    """
    with scratch(Path(tempfile.gettempdir())) as place:
        (place / base.folder.name).mkdir()
        base.copy(place / base.folder.name)
        tokenizer = load_tokenizer(place / base.folder.name)
    samples = options.num_calibration_samples
    length = window_length(base.folder, options.max_seq_length, report)
    tuned = _tuned_on(recipe, fetched)
    data = _named(recipe, options, fetched) if options.calibration else tuned
    held = min(HELD_BACK, samples // 7) if options.refines else 0
    found, said = cut_rows(data, tokenizer, samples + held, length, mixed=data is tuned)
    found = found.holding_back(held)
    check_embedded(tokenizer, int(found.ids.max()), base.rows, base.folder.name)
    for finding in said:
        report.warn(finding.text)
    apart = f"; {len(found.held)} more are held back" if len(found.held) else ""
    report.log(f"Calibrating on {found.words}, {found.ids.size} in all{apart}{fewer(len(found.ids), samples)}.")
    if measured:
        check_apart(found, tokenizer, measured.content)
    elsewhere = "\n".join(map(_text, islice(tuned.train(), HEARD))) if tuned and options.calibration else None
    doubtful = doubts(found, tokenizer, measured.content if measured else None)
    for doubt in (*doubtful, *unsuited(found, tokenizer, talks(data), elsewhere)):
        report.warn(doubt)
    return found


def fewer(windows: int, asked: int) -> str:
    """Say that there are fewer windows than were asked for, where that is so."""
    return f"; {asked} were asked for, there is no more text" if windows < asked else ""


def cut_rows(
    data: Dataset | None, tokenizer: Any, samples: int, length: int, mixed: bool = False
) -> tuple[Windows, tuple[Finding, ...]]:
    """Cut rows into windows, or where there are none the embedded texts.

    Args:
        data: The rows.
        tokenizer: The model's.
        samples: Windows at most.
        length: Tokens in a window.
        mixed: Whether the embedded texts are read beside the rows: half of the windows, or what the rows leave.

    Returns:
        The windows, and what is to be said of rows that were left out.

    Raises:
        SpecError: There is not enough for one window, or the chat template takes no row, or not each that it should.
    """
    if data is None:
        return embedded_windows(tokenizer, samples, length), ()
    ledger, total = Ledger(data.examination.name), data.examination.train
    wanted = (samples + 1) // 2 if mixed else samples
    try:
        found = windows_of(data.examination.name, _tokens(data, tokenizer, ledger), tokenizer, wanted, length)
    except SpecError:
        if ledger.count == total:
            raise ledger.unusable(total) from None
        raise
    said = ledger.findings(total, data.drops)
    if said and not data.drops:
        raise refusal(said)
    left = samples - len(found.ids)
    if mixed and left:
        with suppress(SpecError):  # of a window so long that the embedded texts do not fill it
            found = joined((found, embedded_windows(tokenizer, left, length)))
    return found, said


def talks(data: Dataset | None) -> bool:
    """Return whether what is calibrated on holds conversations, as the embedded texts do for who has a template."""
    return data is None or any(sample.messages for sample in data.examination.preview)


def _named(recipe: Recipe, options: CalibratedOptions, fetched: Path) -> Dataset:
    """Return the rows that a quantization names."""
    place = fetched / f"calibration-{recipe.stages.index(options) + 1}"
    with faults_of("calibration"):
        return load(read_sources(place).train, options.rows())


def _tuned_on(recipe: Recipe, fetched: Path) -> Dataset | None:
    """Return the rows that the recipe trains on, without those that are held out."""
    if not recipe.tuning:
        return None
    sources = read_sources(fetched)
    return load(sources.train, recipe.tuning, sources.validation)


def _tokens(data: Dataset, tokenizer: Any, ledger: Ledger) -> Iterator[list[int]]:
    """Yield the tokens of each row: conversations through the chat template, where there is one; texts follow on.

    Raises:
        SpecError: The chat template takes no conversation at all.
    """
    renders = Talks.of(tokenizer)
    for sample in data.train():
        if sample.messages and tokenizer.chat_template:
            yield from (row.input_ids for row in rendered([sample], renders, ledger))
        else:
            yield tokenizer(_text(sample) + "\n\n", add_special_tokens=False, verbose=False)["input_ids"]


def _text(sample: Sample) -> str:
    return sample.text or "\n\n".join(message.content for message in sample.messages)
