"""The evaluate step: each model that was made is measured against what it was made from, on a text fetched before."""

import time
from pathlib import Path
from typing import Any

from backend.artifacts.artifact import MANIFEST, Artifact, Metrics, now, versions
from backend.artifacts.compared import ModelName
from backend.artifacts.sealing import partial, record, verify
from backend.disk import read_whole
from backend.errors import AppError, HubError, JobError, SpecError
from backend.evaluate import ROWS, EvaluateOptions, Text, measure
from backend.machine.hardware import hardware, peak_memory_bytes
from backend.model_folder import read_config
from backend.models.config import longest_window
from backend.models.demo import evaluation_text
from backend.models.facts import ModelFacts
from backend.progress import Report
from backend.quantize.bitsandbytes import BitsAndBytesOptions
from backend.quantize.method import MethodOptions
from backend.settings import load_settings
from backend.stage import Stage
from backend.stages.check import ANSWER_SECONDS_A_PARAMETER, IMPORT_SECONDS
from backend.stages.held_out import compare, write_worst
from backend.stages.named_rows import fetch_rows, pin_rows
from backend.stages.step import Need, Planned, Step
from backend.stages.work import MODEL, Fetched, Work, models

WIKITEXT = "Salesforce/wikitext:wikitext-2-raw-v1:test"
EMBEDDED = "pydoc_data.topics, every second topic (English prose that ships with CPython)"

# Measured with the demo model on 2 cores of an AVX-512 server, torch 2.13 and transformers 5.23.
EVALUATE_BYTES = 540_000_000  # Python with torch, transformers and bitsandbytes
ROWS_BYTES = 24  # for each of the compared rows and token of the vocabulary: six copies in float32
COPIES_BYTES = 160  # for each token of a window and number that it is in a layer
SECONDS_A_TOKEN_AND_PARAMETER = 2.4e-11  # both models, forward
ROW_SECONDS_A_PARAMETER = 2.5e-9  # of one model: the loss of a row, and the answer to it


def run(work: Work, token: str | None, report: Report) -> None:
    """Measure every model that the steps before this one made, or the folder that was named."""
    started, folder = time.monotonic(), partial(work.target)
    base = work.fetched.folder
    measured = [work.given.folder] if work.given else models(work.job)
    found = _measured(work, base, measured, report)
    for result, (answers, worst) in compare(work, _before(work, base), _kinds(work, measured), report).items():
        found[result] = _kept(result, found[result].model_copy(update={"rows": answers}))
        write_worst(folder, result.name, worst)
    for result, metrics in found.items():
        report.log(f"{result.name}: {metrics.words}")
    options: EvaluateOptions = work.options
    public = options.with_files({field: path.name for field, path in options.files().items()})
    artifact = Artifact(
        kind="evaluation",
        stage="evaluate",
        options=public.model_copy(update={"text": metrics.text}).model_dump(mode="json", exclude_none=True),
        versions=versions(),
        hardware=hardware(),
        seconds=round(time.monotonic() - started, 1),
        peak_memory_bytes=peak_memory_bytes(),
        metrics=metrics,
        created=now(),
    )
    work.seal(artifact, folder)


def _measured(work: Work, base: Path, results: list[Path], report: Report) -> dict[Path, Metrics]:
    """Measure results on the text, each against what it was made from."""
    from backend.evaluate.tasks import score

    options, text = work.options, measured_on(work, work.number)
    timed, found = dict[Path, float | None](), dict[Path, Metrics]()
    for result in results:
        if (result / MANIFEST).is_file():
            verify(result)
        reference = _reference(work, base, result)
        speeds = _speeds(reference, result, timed, report) if options.answers else {}
        more = {**speeds, "tasks": score(reference, result, options, report)} if options.tasks else speeds
        found[result] = _kept(result, measure(reference, result, text, options, report).model_copy(update=more))
    return found


def _kept(result: Path, metrics: Metrics) -> Metrics:
    """Record with a result what was measured of it, where it is an artifact."""
    if (result / MANIFEST).is_file():
        record(result, metrics=metrics)
    return metrics


def _before(work: Work, base: Path) -> dict[ModelName, Path]:
    """Return what the answers of results are compared with: the base model's, and the tuned one's."""
    whole = None if work.given else _merged(work)
    return {"base": base, "tuned": whole} if whole else {"base": base}


def _kinds(work: Work, results: list[Path]) -> dict[Path, ModelName]:
    """Say what each result is; of a folder that was named nobody knows whether it was tuned too."""
    if work.given:
        return dict.fromkeys(results, "result")
    return {result: "tuned" if result == _merged(work) else "quantized" for result in results}


def pin(stage: EvaluateOptions, facts: ModelFacts, token: str | None) -> EvaluateOptions:
    """Refuse tasks that cannot be run here, read rows of this machine, and pin a data set to its commit."""
    from backend.evaluate.tasks import check_installed

    check_installed(stage)
    return stage.model_copy(update={"rows": pin_rows(stage.rows, "rows", token)}) if stage.rows else stage


def fetch(stage: EvaluateOptions, work: Work, folder: Path, token: str | None, report: Report) -> None:
    """Bring the rows and the text, and refuse one that is too short for a window."""
    places = read_whole(folder / MODEL, Fetched)
    assert places
    from backend.evaluate.tasks import fetch_tasks

    fetch_tasks(stage, report)
    if stage.rows and stage.num_rows:
        fetch_rows(stage.rows, "rows", folder / f"rows-{work.number}", token, report)
    text = _text(work, stage, folder / "download.txt", token, report)
    length = longest_window(read_config(places.pickled or places.folder), stage.max_seq_length)
    if len(text.content.encode()) < length - 1:  # no token is shorter than a byte; one may stand before the text
        raise SpecError(
            f"'{text.name}' has {len(text.content.encode())} bytes, too few for one window of {length} tokens: give"
            " a longer text, or a smaller max_seq_length."
        )
    (folder / f"text-{work.number}.json").write_text(text.model_dump_json(), encoding="utf-8")


def _text(work: Work, options: EvaluateOptions, draft: Path, token: str | None, report: Report) -> Text:
    """Return the text to measure on: the user's file, a data set, WikiText-2, or the embedded prose."""
    if options.text:
        path = Path(options.text)
        try:
            return Text(name=path.name, content=path.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError) as e:
            raise JobError(f"Could not read the text '{path.name}'. Give a text file in UTF-8.") from e
    if options.dataset or work.spec.on_hub:
        from backend.hub.texts import fetch_text

        try:
            name = fetch_text(options.dataset or WIKITEXT, draft, token, report)
        except HubError as e:
            if options.dataset:
                raise
            report.log(f"WikiText-2 could not be fetched, the embedded text takes its place. {e}")
        else:
            content = draft.read_text(encoding="utf-8")
            draft.unlink()
            return Text(name=name, content=content)
    return Text(name=EMBEDDED, content=evaluation_text())


def measured_on(work: Work, index: int) -> Text:
    """Return the text that a step measures on.

    Raises:
        JobError: It is damaged.
    """
    if found := read_whole(work.fetch_folder / f"text-{index}.json", Text):
        return found
    raise JobError(f"The text in '{work.fetch_folder.name}' cannot be read: retry, which fetches it again.")


def first_text(work: Work) -> Text | None:
    """Return the first text that the job measures on, if it measures."""
    indices = (i for i, asked in enumerate(work.spec.plan) if isinstance(asked.options, EvaluateOptions))
    return next((measured_on(work, i) for i in indices), None)


def _reference(work: Work, base: Path, result: Path) -> Path:
    """Return what a result is measured against: what it was made from, which is the merged model where there is one."""
    whole = None if work.given else _merged(work)
    return base if whole in (None, result) else whole


def _merged(work: Work) -> Path | None:
    """Return the folder of the model that the recipe has merged, if it merges."""
    merging = work.recipe.merging
    return work.output(work.recipe.stages.index(merging) + work.recipe.first) if merging else None


def _speeds(reference: Path, result: Path, timed: dict[Path, float | None], report: Report) -> dict[str, Any]:
    """Time a model that is unpacked to be measured, and its reference, in the engine that serves it.

    Args:
        reference: Folder of the model that the result was made from.
        result: Folder of the result.
        timed: What was timed before, by its folder.
        report: Receives what is timed.
    """
    from backend.quantize.packed import is_unpacked
    from backend.serve.engines import ENGINES, choose
    from backend.serve.speed import decode_speed

    if not is_unpacked(result):
        return {}
    try:
        engine, _ = choose(result)
    except AppError as e:
        report.log(f"The speed of '{result.name}' is not measured: {e}")
        return {}
    if ENGINES[engine].unpacks(read_config(result)):  # another speed than where it is meant to run
        return {}
    for folder in (reference, result):
        if folder not in timed:
            timed[folder] = decode_speed(folder, engine, load_settings(), report)
    if timed[reference] is None or timed[result] is None:
        return {}
    speeds = {"reference_tokens_per_second": timed[reference], "tokens_per_second": timed[result]}
    return {**speeds, "engine": ENGINES[engine].title}


def need(stage: EvaluateOptions, planned: Planned) -> Need:
    """Estimate measuring: both models, the logits of a window from each, and a few copies of some rows.

    bitsandbytes' arithmetic makes copies of what a layer has in hand: a result that is only cast needs less.
    """
    facts = planned.facts
    length = longest_window(facts.config, stage.max_seq_length)
    tokens = length * stage.num_samples
    once = tokens * SECONDS_A_TOKEN_AND_PARAMETER + stage.answers * ANSWER_SECONDS_A_PARAMETER
    forward = facts.parameters * (len(planned.results) * once + _row_seconds(stage, planned))
    sizes = (files.items() for files in planned.results.values())
    largest = max(sum(count for name, count in files if name.endswith(".safetensors")) for files in sizes)
    if any(_is_unpacked(other) for other in planned.recipe.stages):
        largest = max(largest, facts.loaded)
    rows = min(ROWS, length)
    width = 4 if facts.dtype == "float32" else 2
    logits = (2 * width * length + ROWS_BYTES * rows) * facts.vocab_size
    copies = COPIES_BYTES * length * facts.hidden_size
    memory = EVALUATE_BYTES + facts.loaded + largest + logits + copies
    remedy = "leave evaluate out, give it a smaller max_seq_length, or choose a machine with more memory"
    return Need(memory, IMPORT_SECONDS + forward, remedy=remedy)


def _row_seconds(stage: EvaluateOptions, planned: Planned) -> float:
    """Return the seconds a parameter that answers to rows take: as many models as results, and the base model."""
    tuning = planned.recipe.tuning
    held_out = tuning and (tuning.validation_size or tuning.validation_dataset or tuning.validation_split)
    if not (stage.rows or held_out):
        return 0.0
    models = len(planned.results) + 1
    return models * stage.num_rows * ROW_SECONDS_A_PARAMETER


def _is_unpacked(stage: Stage) -> bool:
    """Return whether the result of a stage is measured in 16 bit: all is but what bitsandbytes computes with."""
    return isinstance(stage, MethodOptions) and not isinstance(stage, BitsAndBytesOptions)


def words(stage: EvaluateOptions) -> tuple[str, str]:
    """Say on how much it measures."""
    windows = "1 window" if stage.num_samples == 1 else f"{stage.num_samples} windows"
    return "Measure the quality", f"{windows} of {stage.max_seq_length} tokens"


STEP = Step(run, pin=pin, fetch=fetch, need=need, words=words, alone=True)
