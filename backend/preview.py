"""A preview as a terminal shows it: columns, findings, counts, lengths, and samples with what is learned marked."""

from collections.abc import Iterable, Iterator
from itertools import dropwhile

from backend.data.columns import ROLES_SHOWN, Mapping
from backend.data.examine import Examination
from backend.data.findings import Finding
from backend.finetune.rendered import Piece, Survey
from backend.jobs.previews import Seen

WIDTH = 40  # characters of the longest bar
SHOWN_TEXT = 2_000  # characters of a sample
SHOWN_COLUMNS = 40

_GREEN, _PLAIN = "\x1b[32m", "\x1b[0m"
_OPEN, _CLOSE = "⟦", "⟧"


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


def recognized(examination: Examination) -> str:
    """Say in plain words what the files are, and what becomes of the columns."""
    words = [" and ".join(_FORMATS[name] for name in examination.formats)]
    words += [f"in {' and '.join(name.upper() for name in examination.encodings)}"] if examination.encodings else []
    if examination.delimiter:
        words.append(f"with a {examination.delimiter} between fields")
    if examination.header is not None:
        words.append("the first row names the columns" if examination.header else "the first row is a row already")
    return f"{', '.join(words)}. {understood(examination.mapping)}"


def understood(mapping: Mapping | None) -> str:
    """Say what becomes of the columns, and why they were taken for that."""
    if mapping is None:
        return "What becomes of its columns is still open."
    return f"{_LAYOUTS[mapping.layout]}: {mapping.words}."


_FORMATS = {
    "csv": "A table (CSV)", "tsv": "A table (TSV)", "json": "A JSON document", "jsonl": "JSON lines",
    "parquet": "A Parquet file", "txt": "Plain text",
}  # fmt: skip
_LAYOUTS = {
    "messages": "Conversations as TRL writes them",
    "conversations": "Conversations as ShareGPT writes them",
    "prompt_completion": "Prompts with completions",
    "alpaca": "Instructions as Alpaca writes them",
    "question_answer": "Questions with answers",
    "text": "Plain text, learned as it stands",
    "template": "Text made by your template",
    "columns": "The columns that you named",
}


def counts(survey: Survey) -> dict[str, int]:
    """Name the figures of rendered rows that somebody should look at."""
    return {
        "cut at max_length": survey.truncated,
        "left out, for nothing of them would be learned": survey.masked,
        "left out, for the chat template does not take them": survey.refused,
        "without a token that ends the answer": survey.endless,
    }


def dropped(examination: Examination, calibrates: bool = False) -> dict[str, int]:
    """Name the figures of rows that are read.

    Args:
        examination: Of the rows.
        calibrates: Whether they are calibrated on, not learned from.
    """
    reasons = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in examination.dropped.items())
    without = f"without a sample ({reasons})" if reasons else "without a sample"
    used = {"to learn from": examination.train, "to measure on": examination.validation}
    return {
        "read": examination.rows,
        without: sum(examination.dropped.values()),
        "repeat an earlier one": examination.repeated,
        **({"to calibrate on": examination.train} if calibrates else used),
    }


def _source(examination: Examination) -> str:
    figures = [f"  {count:>9,}  {what}" for what, count in dropped(examination).items()]
    return "\n".join([f"{examination.name}: {recognized(examination)}", "Rows", *figures])


def _columns(examination: Examination) -> str:
    roles = taken_for(examination.mapping)
    lines = [f"  {c.name}  ({c.kind}) → {roles.get(c.name, 'not used')}\n      {_line(c.example)}"
             for c in examination.columns[:SHOWN_COLUMNS]]  # fmt: skip
    lines += [f"  … and {more} more" for more in [len(examination.columns) - SHOWN_COLUMNS] if more > 0]
    return "\n".join(["Columns", *lines])


def taken_for(mapping: Mapping | None) -> dict[str, str]:
    """Return what each column that is used is taken for."""
    if mapping is None:
        return {}
    roles = {getattr(mapping, role): role for role in ROLES_SHOWN if role != "template"}
    return dict.fromkeys(mapping.used, "template") | {name: role for name, role in roles.items() if name}


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


def reach(seen: Seen) -> str:
    """Say which of the rows were rendered."""
    rendered = seen.survey.looked_at if seen.survey else 0
    every = seen.examination.train if seen.examination else rendered
    if rendered < every:
        return f"Counted on the first {rendered:,} of {every:,} rows."
    return "Counted on every row."


def _counts(seen: Seen, survey: Survey) -> str:
    share = survey.learned_tokens / max(survey.tokens, 1)
    lines = [f"  {count:>9,}  {what}" for what, count in {"rendered": survey.rows, **counts(survey)}.items()]
    tokens = f"  {survey.tokens:>9,}  tokens, of which {survey.learned_tokens:,} ({share:.0%}) are learned"
    return "\n".join([f"What the model will see. {reach(seen)}", *lines, tokens])


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
    marked = (f"{before}{harmless(p.text)}{after}" if p.learned else harmless(p.text) for p in shortened(pieces))
    return "".join(marked)


def shortened(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the pieces up to a length that one can still look at."""
    left = SHOWN_TEXT
    for piece in pieces:
        text = piece.text if len(piece.text) <= left else piece.text[:left] + " …"
        yield piece.model_copy(update={"text": text})
        left -= len(piece.text)
        if left <= 0:
            return


def harmless(text: str) -> str:
    """Return a text of the rows without what would steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)


def _line(text: str) -> str:
    return " ".join(harmless(text).split())
