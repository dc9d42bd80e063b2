"""The quality report: what evaluate measured, as a table under one plain sentence."""

from backend.evaluate import Metrics
from ui.format import escape, percent

# KL in nats a token. On the demo model NF4 has 0.28 and picks another token 26 times in 100; calibrated 4 bit has 0.09.
_GRADES = (
    (0.02, "good", "As good as the original"),
    (0.1, "good", "Very close to the original"),
    (0.2, "fair", "A little worse than the original"),
    (0.5, "fair", "Noticeably worse than the original"),
)
_WORST = ("poor", "Far from the original: try a method with more bits")


def grade(metrics: Metrics) -> tuple[str, str]:
    """Give a class (good, fair, poor) and a verdict, by mean KL divergence."""
    for limit, kind, words in _GRADES:
        if metrics.kl_mean < limit:
            return kind, words
    return _WORST


def sentence(metrics: Metrics) -> str:
    """Judge a result in one plain sentence."""
    change = metrics.perplexity / metrics.reference_perplexity - 1
    moved = (
        "stays the same" if abs(change) < 0.005 else f"{'rises' if change > 0 else 'falls'} by {percent(abs(change))}"
    )
    agreed = f"it picks the same next token {percent(metrics.top1_agreement)} of the time"
    return f"{grade(metrics)[1]}: {agreed}, and its perplexity {moved}."


def report(metrics: Metrics) -> str:
    """Write the report."""
    rows = (
        ("Perplexity", f"{metrics.reference_perplexity:.2f}", f"{metrics.perplexity:.2f}", "lower is better"),
        ("KL divergence, mean", "0", f"{metrics.kl_mean:.4f}", "nats a token, lower is better"),
        ("KL divergence, 99th percentile", "0", f"{metrics.kl_p99:.3f}", "the worst tokens, lower is better"),
        ("Same most likely token", percent(1), percent(metrics.top1_agreement), "higher is better"),
    )
    body = "".join(
        f'<tr><th scope="row">{name}<small>{hint}</small></th><td>{before}</td><td>{after}</td></tr>'
        for name, before, after, hint in rows
    )
    return (
        f'<section class="panel quality {grade(metrics)[0]}"><header><h2>Quality</h2></header>'
        f'<p class="verdict">{escape(sentence(metrics))}</p><div class="wide"><table><thead><tr><th></th>'
        f'<th scope="col">Original</th><th scope="col">Result</th></tr></thead><tbody>{body}</tbody></table></div>'
        f'<p class="quiet">Measured on {metrics.tokens:,} tokens of {escape(metrics.text)}.'
        f" {escape(metrics.convention.rstrip('.'))}.</p></section>"
    )
