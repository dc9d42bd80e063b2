"""Previews as the app keeps them: what one has found so far, and what a new one takes over from the one before."""

from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from backend.artifacts.sealing import is_sealed
from backend.data.examine import Examination
from backend.data.fetch import SOURCES, pin
from backend.data.findings import Finding
from backend.disk import read_whole
from backend.errors import JobError
from backend.finetune.options import FinetuneOptions
from backend.finetune.rendered import Survey
from backend.jobs.job import read_spec
from backend.models.inspection import inspect
from backend.options import Frozen
from backend.spec import Preview
from backend.stages.preview import EXAMINATION, FAULTS, READING, SPLITS, SURVEY, Reading, findings
from backend.stages.work import stage_folder

T = TypeVar("T")


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
        """The survey estimated for all rows, where only the first were rendered."""
        if not (self.survey and self.examination and self.survey.rows):
            return self.survey
        times = self.examination.train / self.survey.looked_at
        counts = {name: round(times * getattr(self.survey, name)) for name in ("rows", "tokens", "learned_tokens")}
        return self.survey.model_copy(update=counts)

    @property
    def reach(self) -> str:
        """Which of the rows were rendered, in words."""
        rendered = self.survey.looked_at if self.survey else 0
        every = self.examination.train if self.examination else rendered
        if rendered < every:
            return f"Counted on the first {rendered:,} of {every:,} rows."
        return "Counted on every row."

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
        token: The caller's Hub token.

    Raises:
        SpecError, HubError: Why there is nothing to look at.
    """
    facts = inspect(model, revision, token)
    options.check(facts)
    return Preview(base_model=model, revision=facts.commit, options=pin(options, token))


def read_seen(job: Path, spec: Preview) -> Seen:
    """Return what the steps of a preview have found so far."""
    sealed = _sealed(job, spec)
    examination = _found(sealed, EXAMINATION, Examination)
    return Seen(
        splits=_found(sealed, SPLITS, dict[str, tuple[str, ...]]) or {},
        examination=examination,
        findings=findings(sealed),
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
    folders = (stage_folder(job, spec, index) for index in range(len(spec.steps)))
    return [folder for folder in folders if is_sealed(folder)]
