"""The steps of a preview: rows are brought, looked through, and rendered, or cut, as the model would see them.

What the options leave open is a question among the findings, not an error: who asks is shown what there is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from pydantic import Field, TypeAdapter

from backend.artifacts.artifact import Artifact, now
from backend.artifacts.sealing import partial
from backend.data.examine import Dataset, Examination, examine, load
from backend.data.fetch import SOURCES, fetch_dataset, read_sources, splits_of, write_sources
from backend.data.findings import Finding, Ledger
from backend.disk import read_whole, write_whole
from backend.errors import JobError, SpecError
from backend.evaluate import EvaluateOptions
from backend.finetune.reader import literals, open_reader
from backend.finetune.rendered import render, survey
from backend.model_folder import read_config
from backend.models.config import longest_window
from backend.models.demo import evaluation_text
from backend.models.fetch import fetch_model, fetch_tokenizer
from backend.models.loading import load_tokenizer
from backend.options import Frozen
from backend.progress import Report
from backend.quantize.calibrated.windows import check_apart, doubts, unsuited
from backend.settings import load_settings
from backend.spec import Cut, Preview
from backend.stages.calibration_data import cut_rows, talks
from backend.stages.step import Step
from backend.stages.work import MODEL, Fetched, Work

MAX_RENDERED = 5_000
"""Rows that are rendered for a preview; the first ones show what the model will see of all others."""

EXAMINATION = "examination.json"
FINDINGS = "findings.json"
FAULTS = "faults.json"
SPLITS = "splits.json"
SURVEY = "survey.json"
READING = "reading.json"

_FINDINGS = TypeAdapter(tuple[Finding, ...])
_SPLITS = TypeAdapter(dict[str, tuple[str, ...]])
_FAULTS = TypeAdapter(dict[str, str])


class Reading(Frozen):
    """What calibration would read."""

    name: str
    windows: int
    length: int = Field(description="Tokens in a window.")
    asked: int = Field(description="Windows that were asked for.")
    doubts: tuple[str, ...] = Field(description="Why it may not do.")


def findings(folders: list[Path]) -> tuple[Finding, ...]:
    """Return everything that some steps have said, questions first.

    Args:
        folders: Their sealed outputs.
    """
    said: list[Finding] = []
    for folder in folders:
        said += read_whole(folder / FINDINGS, tuple[Finding, ...]) or ()
    for folder in folders:
        if examination := read_whole(folder / EXAMINATION, Examination):
            said += examination.findings
    return tuple(sorted(said, key=lambda finding: not finding.asks))


@contextmanager
def _output(work: Work) -> Iterator[Path]:
    """Yield the folder that a step writes to, and seal it; which options are at fault is kept."""
    folder = partial(work.target)
    try:
        yield folder
    except SpecError as e:
        write_whole(work.job / FAULTS, _FAULTS.dump_json(e.faults))
        raise
    work.seal(Artifact(kind="preview", stage=work.spec.steps[work.number], created=now()), folder)


def fetch(work: Work, token: str | None, report: Report) -> None:
    """Bring the rows and the tokenizer; a config or split that must be chosen is asked for."""
    spec: Preview = work.options
    with _output(work) as folder:
        if not (spec.cut and spec.cut.embedded) and not _fetch_rows(spec, folder, token, report):
            return
        if not spec.here:
            model = fetch_tokenizer(spec.base_model, spec.revision, load_settings().models, token, report)
            (folder / MODEL).write_text(Fetched(folder=model).model_dump_json(), encoding="utf-8")


def _fetch_rows(spec: Preview, folder: Path, token: str | None, report: Report) -> bool:
    """Bring the rows, and return whether it is known which ones are meant."""
    (folder / SPLITS).write_bytes(_SPLITS.dump_json(splits_of(spec.options, token)))
    try:
        write_sources(folder, fetch_dataset(spec.options, folder / "rows", token, report))
    except SpecError as e:
        asked = [name for name in ("config", "split", "validation_split", "validation_dataset") if name in e.faults]
        if not asked:
            raise
        _ask(folder, e, asked[0])
        return False
    return True


def examine_rows(work: Work, token: str | None, report: Report) -> None:
    """Look through the rows, where it is known which ones are meant."""
    spec: Preview = work.options
    with _output(work) as folder:
        if (work.fetch_folder / SOURCES).is_file():
            sources = read_sources(work.fetch_folder)
            found = examine(sources.train, spec.options, sources.validation)
            (folder / EXAMINATION).write_text(found.model_dump_json(), encoding="utf-8")


def render_rows(work: Work, token: str | None, report: Report) -> None:
    """Render the rows, or cut them into windows, where no question is open."""
    spec: Preview = work.options
    with _output(work) as folder:
        if (work.fetch_folder / SOURCES).is_file():
            if not any(finding.asks for finding in findings([work.output(i) for i in range(work.number)])):
                _render(spec, work.fetch_folder, folder, report)
        elif spec.cut and spec.cut.embedded:
            _cut(spec.cut, None, _model(spec, work.fetch_folder, report), folder)


def _model(spec: Preview, fetched: Path, report: Report) -> Path:
    """Return where the tokenizer lies."""
    if spec.here:  # making the demo model takes a while: the findings are told before
        return fetch_model(spec.base_model, None, load_settings().models, None, report, converts=True)
    if found := read_whole(fetched / MODEL, Fetched):
        return found.folder
    raise JobError("Where the tokenizer lies cannot be read: look at the rows again.")


def _render(spec: Preview, fetched: Path, folder: Path, report: Report) -> None:
    """Render the rows, or cut them into windows; what the tokenizer lacks is asked for."""
    base = _model(spec, fetched, report)
    sources = read_sources(fetched)
    report.progress("rendering", 0, 1, "data sets")
    data = load(sources.train, spec.options, sources.validation)
    if spec.cut:
        _cut(spec.cut, data, base, folder)
        return
    try:
        reader = open_reader(base, data, spec.options)
    except SpecError as e:
        _ask(folder, e, next(iter(e.faults), None))
        return
    ledger = Ledger(data.examination.name)
    rows, masked = render(islice(data.train(), MAX_RENDERED), reader.renderer, ledger)
    seen = survey(rows, masked, reader.tokenizer, ledger.count)
    said = ledger.findings(seen.looked_at, spec.options.on_fault == "drop")
    (folder / FINDINGS).write_bytes(_FINDINGS.dump_json((*said, *literals(data, reader))))
    (folder / SURVEY).write_text(seen.model_dump_json(), encoding="utf-8")
    report.progress("rendering", 1, 1, "data sets")


def _cut(cut: Cut, data: Dataset | None, base: Path, folder: Path) -> None:
    """Cut what calibration would read into windows."""
    tokenizer, samples = load_tokenizer(base), cut.num_calibration_samples
    length = longest_window(read_config(base), cut.max_seq_length)
    found, said = cut_rows(data, tokenizer, samples, length, cut.mixed)
    measured = _measured(cut.measured_on)
    if measured:
        check_apart(found, tokenizer, measured)
    (folder / FINDINGS).write_bytes(_FINDINGS.dump_json(said))
    doubtful = (*doubts(found, tokenizer, measured), *unsuited(found, tokenizer, talks(data), None))
    reading = Reading(name=found.name, windows=len(found.ids), length=length, asked=samples, doubts=doubtful)
    (folder / READING).write_text(reading.model_dump_json(), encoding="utf-8")


def _measured(options: EvaluateOptions | None) -> str | None:
    """Return the text that quality is measured on, or one in its language; None where that must be fetched first."""
    if options is None or options.dataset:
        return None
    if options.text is None:
        return evaluation_text()
    return Path(options.text).read_text(encoding="utf-8-sig", errors="replace")


def _ask(folder: Path, error: SpecError, option: str | None) -> None:
    """Write down a refusal that an option answers as the question that it is."""
    question = Finding(kind="choice", text=str(error), option=option, asks=True)
    (folder / FINDINGS).write_bytes(_FINDINGS.dump_json((question,)))


EXAMINE = Step(examine_rows)
RENDER = Step(render_rows)
