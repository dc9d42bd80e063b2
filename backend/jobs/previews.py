"""The steps of a preview: rows are brought, looked through, and rendered, or cut, as the model would see them.

What the options leave open is a question among the findings, not an error: who asks is shown what there is.
"""

from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, TypeAdapter

from backend.artifacts.artifact import Artifact, now
from backend.artifacts.sealing import is_sealed, partial, seal
from backend.data.examine import Dataset, Examination, examine, load
from backend.data.fetch import SOURCES, fetch_dataset, pin, read_sources, splits_of, write_sources
from backend.data.findings import Finding, Ledger
from backend.disk import read_whole, write_whole
from backend.errors import JobError, SpecError
from backend.evaluate import EvaluateOptions
from backend.finetune.options import FinetuneOptions
from backend.finetune.reader import literals, open_reader
from backend.finetune.rendered import Survey, render, survey
from backend.hub.ids import DEMO, is_local
from backend.jobs.job import MODEL, Cut, Fetched, Preview, read_spec, stage_folder, steps
from backend.model_folder import read_config
from backend.models.config import longest_window
from backend.models.demo import evaluation_text
from backend.models.fetch import fetch_model, fetch_tokenizer
from backend.models.inspection import inspect
from backend.models.loading import load_tokenizer
from backend.options import Frozen
from backend.progress import Report
from backend.quantize.calibrated.windows import check_apart, doubts
from backend.settings import load_settings
from backend.stages.calibration_data import cut_rows

MAX_RENDERED = 5_000
"""Rows that are rendered for a preview; the first ones show what the model will see of all others."""

LAST = 2  # step of a preview

EXAMINATION, FINDINGS, FAULTS, SPLITS, SURVEY, READING = (
    "examination.json", "findings.json", "faults.json", "splits.json", "survey.json", "reading.json",
)  # fmt: skip

T = TypeVar("T")

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


class Seen(Frozen):
    """What a preview has found so far."""

    splits: dict[str, tuple[str, ...]] = Field({}, description="Of a Hub data set: config → splits.")
    examination: Examination | None = Field(None, description="None before it is known which files are meant.")
    findings: tuple[Finding, ...] = Field((), description="Everything that was said, questions first.")
    survey: Survey | None = Field(None, description="None before it is rendered, and while a question is open.")
    reading: Reading | None = Field(None, description="Of rows that are calibrated on, in the place of a survey.")
    faults: dict[str, str] = Field({}, description="Of a data set that cannot be read: option → what is wrong.")

    @property
    def whole(self) -> Survey | None:
        """The survey reckoned for all rows, where only the first were rendered."""
        if not (self.survey and self.examination and self.survey.rows):
            return self.survey
        times = self.examination.train / self.survey.looked_at
        counts = {name: round(times * getattr(self.survey, name)) for name in ("rows", "tokens", "learned_tokens")}
        return self.survey.model_copy(update=counts)

    @property
    def questions(self) -> tuple[Finding, ...]:
        """What must be answered by an option before anything starts."""
        return tuple(finding for finding in self.findings if finding.asks)


def pinned(model: str, revision: str | None, options: FinetuneOptions, token: str | None) -> Preview:
    """Check options against a model, and pin the model and the rows to their commits.

    Args:
        model: As parse_model() gives it.
        revision: Of the model.
        options: Which rows, and how they are rendered.
        token: Of who asks.

    Raises:
        SpecError, HubError: Why there is nothing to look at.
    """
    facts = inspect(model, revision, token)
    options.check(facts)
    return Preview(base_model=model, revision=facts.commit, options=pin(options, token))


def preview(job: Path, spec: Preview, index: int, token: str | None, report: Report) -> None:
    """Do a step of a preview.

    Raises:
        AppError: The rows cannot be fetched, or not be read at all.
    """
    target, fetched = stage_folder(job, spec, index), stage_folder(job, spec, 0)
    folder = partial(target)
    try:
        if index == 0:
            _fetch(spec, folder, token, report)
        elif (fetched / SOURCES).is_file() and index == 1:
            sources = read_sources(fetched)
            found = examine(sources.train, spec.options, sources.validation)
            (folder / EXAMINATION).write_text(found.model_dump_json(), encoding="utf-8")
        elif (fetched / SOURCES).is_file() and not read_seen(job, spec).questions:
            _render(spec, fetched, folder, report)
        elif spec.cut and spec.cut.embedded and index == LAST:
            _cut(spec.cut, None, _model(spec, fetched, report), folder)
    except SpecError as e:
        write_whole(job / FAULTS, _FAULTS.dump_json(e.faults))
        raise
    seal(folder, target, Artifact(kind="preview", stage=steps(spec)[index], created=now()))


def read_seen(job: Path, spec: Preview) -> Seen:
    """Give what the steps of a preview have found so far."""
    sealed = _sealed(job, spec)
    examination = _found(sealed, EXAMINATION, Examination)
    said = [finding for folder in sealed for finding in read_whole(folder / FINDINGS, tuple[Finding, ...]) or ()]
    said += examination.findings if examination else ()
    return Seen(
        splits=_found(sealed, SPLITS, dict[str, tuple[str, ...]]) or {},
        examination=examination,
        findings=tuple(sorted(said, key=lambda finding: not finding.asks)),
        survey=_found(sealed, SURVEY, Survey),
        reading=_found(sealed, READING, Reading),
        faults=read_whole(job / FAULTS, dict[str, str]) or {},
    )


def _found(folders: list[Path], name: str, kind: type[T]) -> T | None:
    """Return what the first of some folders that has such a file says in it."""
    return next((found for folder in folders if (found := read_whole(folder / name, kind))), None)


def take_over(spec: Preview, job: Path, before: Path) -> None:
    """Move what another preview has fetched into a new one's folder, where both look at the same rows.

    Args:
        spec: What is looked at now.
        job: The new preview's folder.
        before: That of the other, which is of no use any more.
    """
    source, target = stage_folder(before, spec, 0), stage_folder(job, spec, 0)
    with suppress(JobError, OSError):  # it is still being fetched, or somebody has deleted it
        old = read_spec(before)
        if isinstance(old, Preview) and _rows_of(old) == _rows_of(spec) and (source / SOURCES).is_file():
            target.parent.mkdir(parents=True)
            source.rename(target)


def _rows_of(spec: Preview) -> tuple[Any, ...]:
    options = spec.options
    rows = (options.dataset, options.config, options.split, options.revision)
    return (spec.base_model, spec.revision, *rows, options.validation_dataset, options.validation_split)


def _sealed(job: Path, spec: Preview) -> list[Path]:
    folders = (stage_folder(job, spec, index) for index in range(len(steps(spec))))
    return [folder for folder in folders if is_sealed(folder)]


def _fetch(spec: Preview, folder: Path, token: str | None, report: Report) -> None:
    """Bring the rows and the tokenizer; a config or split that must be chosen is asked for."""
    if not (spec.cut and spec.cut.embedded):
        (folder / SPLITS).write_bytes(_SPLITS.dump_json(splits_of(spec.options, token)))
        try:
            write_sources(folder, fetch_dataset(spec.options, folder / "rows", token, report))
        except SpecError as e:
            asked = [name for name in ("config", "split", "validation_split", "validation_dataset") if name in e.faults]
            if not asked:
                raise
            _ask(folder, e, asked[0])
            return
    if not _lies_here(spec.base_model):
        model = fetch_tokenizer(spec.base_model, spec.revision, load_settings().models, token, report)
        (folder / MODEL).write_text(Fetched(folder=model).model_dump_json(), encoding="utf-8")


def _model(spec: Preview, fetched: Path, report: Report) -> Path:
    """Give where the tokenizer lies."""
    if _lies_here(spec.base_model):  # making the demo model takes a while: the findings are told before
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
    found, said = cut_rows(data, tokenizer, samples, longest_window(read_config(base), cut.max_seq_length))
    windows, length = found.ids.shape
    measured = _measured(cut.measured_on)
    if measured:
        check_apart(found, tokenizer, measured)
    (folder / FINDINGS).write_bytes(_FINDINGS.dump_json(said))
    doubtful = tuple(doubts(found, tokenizer, measured))
    reading = Reading(name=found.name, windows=windows, length=length, asked=samples, doubts=doubtful)
    (folder / READING).write_text(reading.model_dump_json(), encoding="utf-8")


def _measured(options: EvaluateOptions | None) -> str | None:
    """Give the text that quality is measured on, or one in its language; None where that must be fetched first."""
    if options is None or options.dataset:
        return None
    if options.text is None:
        return evaluation_text()
    return Path(options.text).read_text(encoding="utf-8-sig", errors="replace")


def _lies_here(model: str) -> bool:
    return model == DEMO or is_local(model)


def _ask(folder: Path, error: SpecError, option: str | None) -> None:
    """Write down a refusal that an option answers as the question that it is."""
    question = Finding(kind="choice", text=str(error), option=option, asks=True)
    (folder / FINDINGS).write_bytes(_FINDINGS.dump_json((question,)))
