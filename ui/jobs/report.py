"""The quality report: what evaluate measured, as a table under one plain sentence."""

from backend.artifacts.artifact import Metrics
from backend.artifacts.scores import Scores
from backend.intervals import Interval, between
from ui.kit.format import escape, percent
from ui.studio import Result

# KL in nats per token. On the demo model NF4 has 0.28 and picks another token 26 times in 100; calibrated 4 bit 0.09.
_GRADES = (
    (0.02, "good", "As good as the {}"),
    (0.1, "good", "Very close to the {}"),
    (0.2, "fair", "A little worse than the {}"),
    (0.5, "fair", "Noticeably worse than the {}"),
)
_WORST = ("poor", "Far from the {}: try a method with more bits")
_CHANGED = ("changed", "What the adapters changed")  # more is no loss: it is what they were trained for

_ALWAYS = ("right before and wrong now, or the reverse", "generated one by one, on this machine")
_LOSS = ("lower is better", "nats per token, lower is better", "the worst tokens, lower is better", "higher is better")
_CHANGE = ("lower is better", "nats per token", "the tokens that changed most", "")


def report(result: Result, metrics: Metrics) -> str:
    """Write what was measured of a result."""
    artifact = result.artifact
    changed = artifact.kind == "merged"
    reference = "Original"
    if changed:
        reference = "Base model"
    elif artifact.merged:
        reference = "Merged model"
    kind, verdict = _CHANGED if changed else _grade(metrics)
    told = f"{verdict.format(reference.lower())}: {_sentence(metrics)}"
    body = "".join(
        f'<tr><th scope="row">{name}<small>{hint}</small></th><td>{before}</td><td>{after}</td></tr>'
        for (name, before, after), hint in zip(
            _figures(metrics), (*(_CHANGE if changed else _LOSS), *_ALWAYS), strict=True
        )
        if after
    )
    sureness = f" {metrics.sureness}" if metrics.windows else ""
    return (
        f'<section class="panel quality {kind}"><header><h2>Quality</h2><p>{escape(result.title)}</p></header>'
        f'<p class="verdict">{escape(told)}</p><div class="wide"><table><thead><tr>'
        f'<th></th><th scope="col">{reference}</th><th scope="col">Result</th></tr></thead><tbody>{body}</tbody>'
        f'</table></div><p class="quiet">Measured on {metrics.tokens:,} tokens of {escape(metrics.text)}.'
        f" {escape(metrics.convention.rstrip('.'))}.{sureness}</p>{_tasks(reference, metrics.tasks)}"
        f"{_answers(reference, metrics)}</section>"
    )


def _figures(metrics: Metrics) -> list[tuple[str, str, str]]:
    """List what was measured, of the reference and of the result; empty where it was not."""
    flips = "" if metrics.flips is None else percent(metrics.flips) + within(metrics.interval("flips"), ".1%")
    change = f"<small>{metrics.perplexity_change:+.1%}{between(metrics.interval('perplexity_change'), '+.1%')}</small>"
    return [
        ("Perplexity", f"{metrics.reference_perplexity:.2f}", f"{metrics.perplexity:.2f}{change}"),
        ("KL divergence, mean", "0", f"{metrics.kl_mean:.4f}{within(metrics.interval('kl_mean'), '.4f')}"),
        ("KL divergence, 99th percentile", "0", f"{metrics.kl_p99:.3f}"),
        (
            "Same next token",
            percent(1),
            percent(metrics.top1_agreement) + within(metrics.interval("top1_agreement"), ".1%"),
        ),
        ("Flips of the next token", percent(0), flips),
        (
            f"Tokens per second in {escape(metrics.engine)}",
            _speed(metrics.reference_tokens_per_second),
            _speed(metrics.tokens_per_second),
        ),
    ]


def within(interval: Interval | None, digits: str) -> str:
    """Write an interval below its figure, where there is one; see between()."""
    return f"<small>{between(interval, digits).strip()}</small>" if interval else ""


def _tasks(reference: str, tasks: Scores | None) -> str:
    """Write the scores of benchmarks, where they were asked for."""
    if not tasks:
        return ""
    body = "".join(
        f'<tr><th scope="row">{escape(one.task)}<small>{escape(f"{one.metric}, {one.asked}")}</small></th>'
        f"<td>{one.figures[0]}</td><td>{one.figures[1]}</td></tr>"
        for one in tasks.scores
    )
    return (
        f'<div class="wide"><table class="tasks"><thead><tr><th scope="col">Task</th><th scope="col">{reference}</th>'
        f'<th scope="col">Result</th></tr></thead><tbody>{body}</tbody></table></div>'
        f'<p class="quiet">{escape(tasks.legend)}</p>'
    )


def _answers(reference: str, metrics: Metrics) -> str:
    """Write what both said to the same prompts, folded."""
    if not metrics.answers:
        return ""
    same = sum(answer.reference == answer.result for answer in metrics.answers)
    body = "".join(
        f'<tr><th scope="row">{escape(a.prompt)}</th><td>{escape(a.reference)}</td><td>{escape(a.result)}</td></tr>'
        for a in metrics.answers
    )
    return (
        f"<details><summary>{same} of {len(metrics.answers)} answers are the same</summary>"
        f'<div class="wide"><table class="answers"><thead><tr><th></th><th scope="col">{reference}</th>'
        f'<th scope="col">Result</th></tr></thead><tbody>{body}</tbody></table></div></details>'
    )


def _speed(tokens_per_second: float | None) -> str:
    return f"{tokens_per_second:.1f}" if tokens_per_second else ""


def _grade(metrics: Metrics) -> tuple[str, str]:
    """Return a class (good, fair, poor) and a verdict, by mean KL divergence."""
    for limit, kind, words in _GRADES:
        if metrics.kl_mean < limit:
            return kind, words
    return _WORST


def _sentence(metrics: Metrics) -> str:
    """Say in one plain sentence how a result behaves."""
    change = metrics.perplexity_change
    verb = "rises" if change > 0 else "falls"
    moved = "stays the same" if abs(change) < 0.005 else f"{verb} by {percent(abs(change))}"
    agreed = f"it picks the same next token {percent(metrics.top1_agreement)} of the time"
    return f"{agreed}, and its perplexity {moved}."
