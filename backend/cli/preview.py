"""`preview`: rows as a model would see them, with findings, counts, lengths, and what is learned marked."""

import sys
from collections.abc import Iterable
from itertools import dropwhile

from pydantic import Field

from backend.cli.command import Argument, Command, with_options
from backend.cli.names import MODEL_HELP, hub_token, local_or_id
from backend.data.examine import Examination
from backend.data.findings import Finding
from backend.data.options import DatasetOptions
from backend.data.recognized import SHOWN_COLUMNS, dropped, recognized, taken_for
from backend.finetune.options import FinetuneOptions
from backend.finetune.rendered import Piece, Survey, shortened
from backend.jobs.foreground import Terminal, finished
from backend.jobs.previews import Seen, pinned, read_seen
from backend.options import parse
from backend.settings import load_settings
from backend.spec import RENDERING

WIDTH = 40  # characters of the longest bar

_GREEN, _PLAIN = "\x1b[32m", "\x1b[0m"
_OPEN, _CLOSE = "⟦", "⟧"


class _Preview(Command):
    model: Argument[str] = Field(description=MODEL_HELP)
    base_revision: str | None = Field(None, description="Branch, tag or commit of the model.")

    def run(self) -> None:
        settings, token = load_settings().writable(), hub_token()
        options = parse(FinetuneOptions, self.given(FinetuneOptions), context={"paths": True})
        spec = pinned(local_or_id(self.model, "model"), self.base_revision, options, token)
        with finished(spec, token, Terminal().hear, settings) as job:
            seen = read_seen(job, spec)
        self.say(seen.model_dump(mode="json", exclude={"faults"}), view(seen, sys.stdout.isatty()))


def view(seen: Seen, color: bool) -> str:
    """Write what a preview has found.

    Args:
        seen: By its steps.
        color: Whether what is learned is colored; else it stands in brackets.
    """
    parts = [_source(seen.examination), _columns(seen.examination)] if seen.examination else [_splits(seen)]
    parts.append(_findings(seen.findings))
    if seen.survey:
        parts.append(_counts(seen, seen.survey))
        parts += [_lengths(seen.survey), _samples(seen.survey, color)] if seen.survey.samples else []
    elif seen.questions:
        parts.append("Nothing is rendered before the questions are answered.")
    return "\n\n".join(part for part in parts if part)


def _source(examination: Examination) -> str:
    figures = [f"  {count:>9,}  {what}" for what, count in dropped(examination).items()]
    return "\n".join([f"{examination.name}: {recognized(examination)}", "Rows", *figures])


def _columns(examination: Examination) -> str:
    roles = taken_for(examination.mapping)
    lines = [f"  {c.name}  ({c.kind}) → {roles.get(c.name, 'not used')}\n      {_line(c.example)}"
             for c in examination.columns[:SHOWN_COLUMNS]]  # fmt: skip
    lines += [f"  … and {more} more" for more in [len(examination.columns) - SHOWN_COLUMNS] if more > 0]
    return "\n".join(["Columns", *lines])


def _splits(seen: Seen) -> str:
    lines = [f"  {config}: {', '.join(splits)}" for config, splits in seen.splits.items()]
    return "\n".join(["Configs and their splits", *lines]) if lines else ""


def _findings(findings: Iterable[Finding]) -> str:
    lines = []
    for finding in findings:
        lines.append(f"  {'?' if finding.asks else '-'} {finding.text}")
        if finding.asks and finding.option:
            lines.append(f"      Answer with --{finding.option.replace('_', '-')}.")
    return "\n".join(["Findings (? must be answered first)", *lines]) if lines else ""


def _counts(seen: Seen, survey: Survey) -> str:
    share = survey.learned_tokens / max(survey.tokens, 1)
    lines = [f"  {count:>9,}  {what}" for what, count in {"rendered": survey.rows, **survey.faults}.items()]
    tokens = f"  {survey.tokens:>9,}  tokens, of which {survey.learned_tokens:,} ({share:.0%}) are learned"
    return "\n".join([f"What the model will see. {seen.reach}", *lines, tokens])


def _lengths(survey: Survey) -> str:
    most = max((count for _, count in survey.histogram), default=1)
    shown = dropwhile(lambda bin_: not bin_[1], survey.histogram)
    bars = [f"  {end:>7,} {'█' * -(-count * WIDTH // most):<{WIDTH}} {count:,}" for end, count in shown]
    return "\n".join(["Rows by length, up to so many tokens", *bars])


def _samples(survey: Survey, color: bool) -> str:
    legend = f"{_GREEN}what is learned{_PLAIN}" if color else f"{_OPEN}what is learned{_CLOSE}"
    head = f"The first {len(survey.samples)} as the model sees them; {legend} counts for the loss"
    rows = [f"--- {i} ---\n{_sample(pieces, color)}" for i, pieces in enumerate(survey.samples, 1)]
    return "\n".join([head, *rows])


def _sample(pieces: Iterable[Piece], color: bool) -> str:
    before, after = (_GREEN, _PLAIN) if color else (_OPEN, _CLOSE)
    marked = (f"{before}{_harmless(p.text)}{after}" if p.learned else _harmless(p.text) for p in shortened(pieces))
    return "".join(marked)


def _harmless(text: str) -> str:
    """Return a text of the rows without what would steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)


def _line(text: str) -> str:
    return " ".join(_harmless(text).split())


_OF_TRAINING = FinetuneOptions.model_fields.keys() - {*DatasetOptions.model_fields, *RENDERING}

COMMAND = with_options(_Preview, {"finetune": FinetuneOptions}, leave_out=tuple(_OF_TRAINING))
