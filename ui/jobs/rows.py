"""Answers to the user's own rows: whether tuning helped, what quantizing cost, and the worst rows side by side."""

from collections.abc import Mapping, Sequence

from backend.artifacts.compared import Answered, Compared, ComparedRow
from ui.jobs.variants import variant_name
from ui.kit.format import escape, plural
from ui.studio import Result

_NAMES = {"base": "Base model", "tuned": "Tuned", "quantized": "Quantized", "result": "Result"}
_HEAD = ("Loss", "Against the base model", "Rows better", "Rows worse", "Short answers right")

_UNANSWERED = (
    '<section class="panel"><header><h2>Answers to your rows</h2></header><p class="quiet">Nothing shows whether tuning'
    " helped: no rows were kept out of the training. Set <b>Validation size</b> beside the training data, to 40 for"
    " example, and base, tuned and quantized model answer these rows.</p></section>"
)

Worst = Mapping[str, Sequence[ComparedRow]]
"""By the key of a result, the rows that it answers worst."""


def rows(results: Sequence[Result], worst: Worst) -> str:
    """Write how the results of one job answer the same rows; empty where there were none.

    Args:
        results: What the job has made.
        worst: The rows that each of them answers worst.
    """
    found = [(r, r.artifact.metrics.rows) for r in results if r.artifact.metrics and r.artifact.metrics.rows]
    if not found:
        return _UNANSWERED if any(map(_kept_none_out, results)) else ""
    named = {_name(result, one): one for result, compared in found for one in compared.models}
    several = sum(result.artifact.kind == "quantized" for result, _ in found) > 1
    said = dict.fromkeys(_sentence(r, name, text, several) for r, c in found for name, text in c.sentences.items())
    told = "".join(f"<p>{escape(text)}</p>" for text in said)
    _, first = found[0]
    shown = found if len(found) == 1 else [pair for pair in found if pair[0].artifact.kind == "quantized"]
    sides = "".join(_sides(result, compared, worst.get(result.key, ()), several) for result, compared in shown)
    return (
        f'<section class="panel quality {_kind(first)}"><header><h2>Answers to your rows</h2><p>{escape(first.counted)}'
        f' of {escape(first.data)}</p></header><div class="verdict">{told}</div>{_table(first, named)}'
        f'<p class="quiet">{escape(first.legend)}</p>{sides}</section>'
    )


def _kept_none_out(result: Result) -> bool:
    """Return whether a result was tuned and measured, and no row was left to see whether that helped."""
    training = result.artifact.training
    return training is not None and training.validation_rows == 0 and result.artifact.metrics is not None


def _name(result: Result, one: Answered) -> str:
    """Name a model; variants by what tells them apart."""
    return variant_name(result.artifact.options) if one.name == "quantized" else _NAMES[one.name]


def _sentence(result: Result, name: str, text: str, several: bool) -> str:
    return f"{variant_name(result.artifact.options)}: {text}" if several and name == "quantized" else text


def _kind(compared: Compared) -> str:
    """Return a class by what became of the answers: better, nothing that shows, worse."""
    change = compared.models[1].change
    if change is None or not change.sure:
        return "changed"
    return "good" if change.loss < 0 else "poor"


def _table(compared: Compared, models: Mapping[str, Answered]) -> str:
    columns = _HEAD if compared.short else _HEAD[:-1]
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    body = "".join(
        _row(name, dict(zip(columns, _figures(one, compared), strict=False))) for name, one in models.items()
    )
    return f'<table class="stacked"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>'


def _row(name: str, figures: Mapping[str, str]) -> str:
    cells = "".join(f'<td data-label="{label}">{figure}</td>' for label, figure in figures.items())
    return f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'


def _figures(one: Answered, compared: Compared) -> list[str]:
    """Return a model's figures in the order of the table; of the base model there is nothing to compare."""
    change, right = one.change, f"{one.right} of {compared.short}"
    if change is None:
        return [f"<span>{one.loss:.3f}</span>", "", "", "", f"<span>{right}</span>"]
    if change.gained or change.lost:
        right += f"<small>{change.gained} gained, {change.lost} lost</small>"
    told = [f"{one.loss:.3f}", change.words, str(change.better), str(change.worse), right]
    return [f"<span>{figure}</span>" for figure in told]


def _sides(result: Result, compared: Compared, worst: Sequence[ComparedRow], several: bool) -> str:
    """Write the worst rows of a result, folded."""
    if not worst:
        return ""
    whose = variant_name(result.artifact.options) if several else _NAMES[compared.models[-1].name].lower()
    names = [_name(result, one) for one in compared.models]
    body = "".join(_side(row, names) for row in worst)
    return (
        f"<details{'' if several else ' open'}><summary>The {plural(len(worst), 'row')} that the {escape(whose)} model"
        f" answers worst</summary>{body}</details>"
    )


def _side(row: ComparedRow, names: Sequence[str]) -> str:
    articles = f"<article><h3>Expected</h3><p>{escape(row.expected)}</p></article>"
    for name, text, loss in zip(names, row.answers, row.losses, strict=True):
        said = escape(text) or "<i>nothing</i>" if text is not None else "<i>was not asked</i>"
        articles += f"<article><h3>{escape(name)} <small>loss {loss:.2f}</small></h3><p>{said}</p></article>"
    asked = f" · {escape(row.prompt)}" if row.prompt else ""
    return f'<section class="asked"><h3>Row {row.row}{asked}</h3><div class="board">{articles}</div></section>'
