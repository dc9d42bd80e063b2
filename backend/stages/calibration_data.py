"""What a calibrated quantization reads: the rows that it names, rows trained on, or embedded prose."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backend.data.examine import Dataset, load
from backend.data.fetch import fetch_dataset, read_sources, write_sources
from backend.data.findings import Finding, Ledger, refusal
from backend.disk import scratch
from backend.errors import SpecError
from backend.evaluate import Text
from backend.finetune.rendered import rendered
from backend.finetune.rendering import Renderer, stops_of
from backend.models.demo import TEXT, calibration_text
from backend.models.loading import check_embedded, load_tokenizer, window_length
from backend.options import faults_of
from backend.progress import Report
from backend.quantize.calibrated.options import CalibratedOptions
from backend.quantize.calibrated.windows import Windows, check_apart, doubts, text_windows, windows_of
from backend.recipes import Recipe
from backend.stages.companions import Base

EMBEDDED = f"{TEXT}, every second topic"

HELD_BACK = 4
"""Windows that decide whether refined scales are better."""

_UNCUT = 10**9


def fetch_calibration(stage: CalibratedOptions, number: int, folder: Path, token: str | None, report: Report) -> None:
    """Bring the rows that a quantization names.

    Args:
        stage: The quantization.
        number: Of it among the stages of its recipe, from 1.
        folder: Of the fetch step, not sealed yet.
        token: The caller's Hub token.
        report: Receives the bytes.

    Raises:
        SpecError: There is no such config or split; what there is instead.
    """
    place = folder / f"calibration-{number}"
    place.mkdir()
    with faults_of("calibration"):
        write_sources(place, fetch_dataset(stage.rows(), place, token, report))


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
    held = min(HELD_BACK, samples // 7) if options.refines else 0
    found, said = cut_rows(_rows(recipe, options, fetched), tokenizer, samples + held, length)
    found = found.holding_back(held)
    check_embedded(tokenizer, int(found.ids.max()), base.rows, base.folder.name)
    for finding in said:
        report.warn(finding.text)
    apart = f"; {len(found.held)} more are held back" if len(found.held) else ""
    report.log(f"Calibrating on {found.words}, {found.ids.size} in all{apart}{fewer(len(found.ids), samples)}.")
    if measured:
        check_apart(found, tokenizer, measured.content)
    for doubt in doubts(found, tokenizer, measured.content if measured else None):
        report.warn(doubt)
    return found


def fewer(windows: int, asked: int) -> str:
    """Say that there are fewer windows than were asked for, where that is so."""
    return f"; {asked} were asked for, there is no more text" if windows < asked else ""


def cut_rows(data: Dataset | None, tokenizer: Any, samples: int, length: int) -> tuple[Windows, tuple[Finding, ...]]:
    """Cut rows into windows, or where there are none the embedded prose.

    Args:
        data: The rows.
        tokenizer: The model's.
        samples: Windows at most.
        length: Tokens in a window.

    Returns:
        The windows, and what is to be said of rows that were left out.

    Raises:
        SpecError: There is not enough for one window, or the chat template takes no row, or not each that it should.
    """
    if data is None:
        return text_windows(EMBEDDED, calibration_text(), tokenizer, samples, length), ()
    ledger, total = Ledger(data.examination.name), data.examination.train
    try:
        found = windows_of(data.examination.name, _tokens(data, tokenizer, ledger), tokenizer, samples, length)
    except SpecError:
        if ledger.count == total:
            raise ledger.unusable(total) from None
        raise
    said = ledger.findings(total, data.drops)
    if said and not data.drops:
        raise refusal(said)
    return found, said


def _rows(recipe: Recipe, options: CalibratedOptions, fetched: Path) -> Dataset | None:
    if options.calibration:
        place = fetched / f"calibration-{recipe.stages.index(options) + 1}"
        with faults_of("calibration"):
            return load(read_sources(place).train, options.rows())
    return load(read_sources(fetched).train, recipe.tuning) if recipe.tuning else None


def _tokens(data: Dataset, tokenizer: Any, ledger: Ledger) -> Iterator[list[int]]:
    """Yield the tokens of each row: conversations through the chat template, where there is one; texts follow on.

    Raises:
        SpecError: The chat template takes no conversation at all.
    """
    renderer = Renderer(tokenizer, "all", _UNCUT, stops_of(tokenizer, ()))
    for sample in data.train():
        if sample.messages and tokenizer.chat_template:
            yield from (row.input_ids for row in rendered([sample], renderer, ledger))
        else:
            text = sample.text or "\n\n".join(message.content for message in sample.messages)
            yield tokenizer(text + "\n\n", add_special_tokens=False, verbose=False)["input_ids"]
