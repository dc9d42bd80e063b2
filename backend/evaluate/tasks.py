"""Tasks: benchmarks of EleutherAI's lm-eval, an extra package, run on a model's very weights in transformers."""

from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from backend.artifacts.scores import Score, Scores
from backend.errors import SpecError
from backend.evaluate import EvaluateOptions
from backend.models.loading import in_our_words, load_tokenizer
from backend.progress import Report
from backend.quantize.packed import load

TOGETHER = 8
"""Examples that a model reads at once."""

_REMEDY = "check the names of the tasks with `lm-eval ls tasks`, or leave tasks out"


def check_installed(options: EvaluateOptions) -> None:
    """Refuse tasks where lm-eval is missing.

    Raises:
        SpecError: What to run to install it.
    """
    if options.tasks and find_spec("lm_eval") is None:
        how = "run `pip install lm-eval`, or leave tasks out"
        text = f"lm-eval runs them and is not installed here: {how}"
        raise SpecError(f"tasks: {text}", {"tasks": text})


def fetch_tasks(options: EvaluateOptions, report: Report) -> None:
    """Bring what tasks ask, which lm-eval keeps in the Hub's cache.

    Raises:
        SpecError: There is no such task, or its data set could not be fetched.
    """
    check_installed(options)
    if options.tasks:
        from lm_eval.tasks import TaskManager

        report.log(f"Fetching the tasks {', '.join(_names(options.tasks))}.")
        with in_our_words("Fetching the tasks", _REMEDY):
            TaskManager().load(list(options.tasks))


def score(reference: Path, result: Path, options: EvaluateOptions, report: Report) -> Scores:
    """Run tasks on a model and on its reference, one after the other.

    Args:
        reference: Folder of the reference; its tokenizer is used for both.
        result: Folder of the model.
        options: The tasks, and how their examples are asked.
        report: Receives which model is at work.

    Raises:
        SpecError: lm-eval failed; the log has why.
    """
    before, after = (_run(folder, reference, options, report) for folder in (reference, result))
    scores = [
        Score(
            task=task,
            metric=metric,
            value=value,
            stderr=error,
            reference=before["results"][task][key],
            reference_stderr=_error(before["results"][task], key),
            higher_is_better=after["higher_is_better"].get(task, {}).get(key.split(",")[0]),
            samples=after["n-samples"].get(task, {}).get("effective", 0),
            num_fewshot=after["n-shot"].get(task),
        )
        for task, found in after["results"].items()
        for key, metric, value, error in _metrics(found)
    ]
    return Scores(
        harness=f"lm-eval {version('lm_eval')}", chat_template=options.apply_chat_template, scores=tuple(scores)
    )


def _run(folder: Path, reference: Path, options: EvaluateOptions, report: Report) -> Any:
    """Return what lm-eval finds of one model."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    report.log(f"Running {', '.join(_names(options.tasks))} on '{folder.name}'.")
    model = load(folder, report)
    with in_our_words("Running the tasks", _REMEDY):
        return simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=load_tokenizer(reference), batch_size=TOGETHER),
            tasks=list(options.tasks),
            num_fewshot=options.num_fewshot,
            limit=options.limit,
            apply_chat_template=options.apply_chat_template,
            log_samples=False,
        )


def _metrics(found: dict[str, Any]) -> list[tuple[str, str, float, float | None]]:
    """List a task's metrics: lm-eval's key, its name for a reader, the value, the standard error."""
    keys = [
        key for key, value in found.items() if "," in key and "_stderr," not in key and isinstance(value, float | int)
    ]
    return [(key, _named(*key.split(",", 1)), float(found[key]), _error(found, key)) for key in keys]


def _named(metric: str, kind: str) -> str:
    return metric if kind == "none" else f"{metric} ({kind})"


def _error(found: dict[str, Any], key: str) -> float | None:
    metric, kind = key.split(",", 1)
    error = found.get(f"{metric}_stderr,{kind}")
    return float(error) if isinstance(error, float | int) else None


def _names(tasks: Sequence[str]) -> list[str]:
    """Return the tasks as a log may name them."""
    return [Path(task).name for task in tasks]
