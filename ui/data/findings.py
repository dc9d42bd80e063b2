"""What was found in rows: the recognized columns, open questions, and what the model will see."""

import html
from collections.abc import Iterable

from backend.data.examine import Examination
from backend.data.recognized import SHOWN_COLUMNS, dropped, recognized, taken_for
from backend.finetune.rendered import Piece, Survey, shortened
from backend.jobs.previews import Seen
from backend.jobs.store import UNFINISHED, Job
from backend.stages.calibration_data import fewer
from backend.stages.preview import Reading
from ui.kit.errors import fault
from ui.kit.format import escape, part, plural

_PHASES = ("Fetching the rows", "Inspecting the rows", "Rendering them as the model will see them")
_CUTTING = (*_PHASES[:2], "Cutting it into windows of tokens")


def nothing(words: str) -> str:
    """Write the panel before anything was looked at."""
    return f'<section class="panel empty"><h2>No data inspected yet</h2><p>{words}</p></section>'


def panel(job: Job, seen: Seen, answered: Iterable[str]) -> str:
    """Write what was found of the rows.

    Args:
        job: The preview.
        seen: What it has found so far.
        answered: Options whose questions stand at their fields.
    """
    inside = _head(job, seen)
    if job.error:
        inside += fault(job.error)
    asked = [finding for finding in seen.questions if finding.option not in set(answered)]
    inside += "".join(fault(finding.text) for finding in asked)
    if seen.examination:
        inside += _list(dropped(seen.examination, bool(job.spec.get("cut")))) + _columns(seen.examination)
    said = [finding.text for finding in seen.findings if not finding.asks]
    inside += _findings([*said, *(seen.reading.doubts if seen.reading else ())])
    return f'<section class="panel examined" data-state="{job.state}">{inside}</section>'


def sight(seen: Seen) -> str:
    """Write what the model will see: figures, lengths and samples; nothing before it is rendered."""
    survey = seen.survey
    if survey is None:
        return ""
    share = survey.learned_tokens / max(survey.tokens, 1)
    figures = {"rows": survey.rows, "tokens": survey.tokens, f"learned ({share:.0%})": survey.learned_tokens}
    figures |= {"tokens in the longest row": survey.longest, **survey.faults}
    head = part("What the model will see", f"Rows with the chat template, as the model reads them. {seen.reach}")
    if not survey.samples:
        return head + _list(figures) + fault("Nothing in any row would be learned: raise max_length, or change loss.")
    return f"{head}{_list(figures)}{_histogram(survey)}{_legend(survey)}{_samples(survey.samples)}"


def question(text: str) -> str:
    """Write a question above the field that answers it."""
    return f'<p role="alert">{escape(text)}</p>'


def _head(job: Job, seen: Seen) -> str:
    if job.state in UNFINISHED:
        phase = (_CUTTING if job.spec.get("cut") else _PHASES)[min(job.step, len(_PHASES) - 1)]
        words = f'<p class="pace"><b>{phase} …</b></p><div class="bar unknown"><i></i></div>'
    elif job.error:
        words = '<p class="verdict poor">These rows cannot be used as they are.</p>'
    elif seen.questions:
        asked = plural(len(seen.questions), "question")
        words = f'<p class="verdict fair">Answer {asked} to continue.</p>'
    elif seen.reading:
        words = _verdict(seen.reading)
    else:
        words = '<p class="verdict">Ready for training.</p>'
    found = seen.examination or seen.reading
    name = "Calibration data" if job.spec.get("cut") else "Rows"
    if found:
        name = found.name
    text = f"<p>{escape(recognized(seen.examination))}</p>" if seen.examination else ""
    return f"<header><h2>{escape(name)}</h2>{text}</header>{words}"


def _verdict(reading: Reading) -> str:
    """Write how much calibration reads, and whether that is enough."""
    tokens = f"{reading.windows * reading.length:,} tokens: {plural(reading.windows, 'window')} of {reading.length:,}"
    kind = " fair" if reading.doubts else ""
    return f'<p class="verdict{kind}">Calibration reads {tokens}{fewer(reading.windows, reading.asked)}.</p>'


def _list(figures: dict[str, int]) -> str:
    cells = "".join(
        f"<div{'' if number else ' class=zero'}><dt>{escape(name)}</dt><dd>{number:,}</dd></div>"
        for name, number in figures.items()
    )
    return f'<dl class="facts">{cells}</dl>'


def _columns(examination: Examination) -> str:
    roles = taken_for(examination.mapping)
    rows = "".join(
        f'<tr><th scope="row">{escape(column.name)}</th><td>{escape(column.kind)}</td>'
        f"<td>{escape(roles.get(column.name, '—'))}</td><td>{escape(column.example)}</td></tr>"
        for column in examination.columns[:SHOWN_COLUMNS]
    )
    more = len(examination.columns) - SHOWN_COLUMNS
    rows += f'<tr><th scope="row">… and {more} more</th></tr>' if more > 0 else ""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Column", "Type", "Role", "Example"))
    return f'<div class="wide"><table class="columns"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _findings(said: Iterable[str]) -> str:
    lines = "".join(f"<li>{escape(text)}</li>" for text in said)
    return f'<ul class="findings">{lines}</ul>' if lines else ""


def _histogram(survey: Survey) -> str:
    """Write the lengths as bars, each with its figures as a tooltip."""
    most = max((count for _, count in survey.histogram), default=0)
    bars, start = "", 0
    for end, count in survey.histogram:
        title = f"{start + 1} to {end} tokens: {plural(count, 'row')}"
        bars += f'<i style="height:{100 * count / most:.1f}%" title="{title}"></i>'
        start = end
    words = f"Rows by length: up to {survey.histogram[-1][0]:,} tokens, {most:,} rows in the highest bar"
    return (
        f'<figure class="lengths"><div role="img" aria-label="{words}">{bars}</div>'
        f"<figcaption><span>0</span><span>Tokens in a row</span><span>{survey.histogram[-1][0]:,}</span></figcaption>"
        "</figure>"
    )


def _legend(survey: Survey) -> str:
    count = f"The first {len(survey.samples)} rows." if len(survey.samples) > 1 else "The first row."
    return (
        f'<p class="legend">{count} <mark>Learned</mark> text counts toward the loss; everything else is only read.</p>'
    )


def _samples(samples: Iterable[Iterable[Piece]]) -> str:
    rows = "".join(f'<li><pre tabindex="0">{_pieces(pieces)}</pre></li>' for pieces in samples)
    return f'<ol class="samples">{rows}</ol>'


def _pieces(pieces: Iterable[Piece]) -> str:
    """Write a sample; its white space is kept, so line breaks stay what they are."""
    texts = ((html.escape(piece.text), piece.learned) for piece in shortened(pieces))
    return "".join(f"<mark>{text}</mark>" if learned else text for text, learned in texts)
