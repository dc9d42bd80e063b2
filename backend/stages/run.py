"""What each step does: sealed inputs in, one sealed folder out. Runs in the worker, never in the app.

A worker does one step, mostly, and imports what that step needs when it begins.
"""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backend.artifacts.artifact import MANIFEST, Artifact, now, versions
from backend.artifacts.sealing import open_artifact, partial, record, seal, verify
from backend.check import check
from backend.disk import read_whole
from backend.errors import AppError, HubError, JobError, SpecError
from backend.evaluate import EvaluateOptions, Text, measure
from backend.hub.files import LocalFiles
from backend.jobs.job import (
    CONVERT,
    MODEL,
    MODELS,
    PUBLISHED,
    Checking,
    Evaluation,
    Fetched,
    Preview,
    Publication,
    Spec,
    Streaming,
    artifacts,
    check_options,
    needs_no_network,
    read_spec,
    stage_folder,
    steps,
    trained_on,
)
from backend.machine.hardware import hardware, peak_memory_bytes
from backend.merge import merge, merged
from backend.model_folder import is_adapter, read_config
from backend.models.admission import admit
from backend.models.config import embedded, longest_window
from backend.models.demo import evaluation_text
from backend.models.fetch import fetch_model
from backend.progress import Report
from backend.quantize import METHODS
from backend.quantize.calibrated.options import CalibratedOptions
from backend.recipes import Recipe
from backend.settings import load_settings
from backend.stages.companions import base_in, complete
from backend.stages.convert import convert_model, converted
from backend.weights.checkpoint import Checkpoint, Weights
from backend.weights.output import Resumable

WIKITEXT = "Salesforce/wikitext:wikitext-2-raw-v1:test"
EMBEDDED = "pydoc_data.topics, every second topic (English prose that ships with CPython)"


def run(job: Path, index: int, online: bool, token: str | None, report: Report) -> None:
    """Do step `index` of the job in folder `job`; its output is sealed when this returns.

    Args:
        job: The folder.
        index: Of the step.
        online: Whether this process has the network; of a step that takes two processes, which part this is.
        token: Of who asks, for what needs the network.
        report: Told how far it is.
    """
    spec = read_spec(job)
    name = steps(spec)[index]
    target = stage_folder(job, spec, index)
    if isinstance(spec, Preview):
        from backend.jobs.previews import preview

        preview(job, spec, index, token, report)
    elif name == "fetch":
        _fetch(spec, target, token, report)
    elif name == CONVERT:
        _convert(job, spec, target, report)
    elif name == "finetune" and isinstance(spec, Recipe):
        _finetune(job, spec, index, report)
    elif name in ("merge", "quantize") and isinstance(spec, Recipe):
        _make(job, spec, index, report)
    elif name == "evaluate":
        _evaluate(job, spec, index, report)
    elif name == "check":
        _check(job, spec, index, report)
    elif name == "stream" and isinstance(spec, Streaming):
        from backend.stages.stream.stream import compute, transfer

        if online:
            transfer(job, spec, token, report)
        else:
            compute(job, spec, report)
    elif name == "adopt" and isinstance(spec, Publication):
        _adopt(job, spec, target, token, report)
    elif name == "publish":
        _publish(job, spec, target, token, report)
    else:
        raise JobError(f"'{name}' is no step of this job: start it again.")


def _fetch(spec: Spec, target: Path, token: str | None, report: Report) -> None:
    """Bring the base model and the texts to measure on; the folder says where the model lies."""
    assert isinstance(spec, Recipe | Evaluation)
    model = spec.reference if isinstance(spec, Evaluation) else spec.base_model
    base = fetch_model(model, spec.revision, load_settings().models, token, report, bool(spec.converts))
    folder = partial(target)
    merging = spec.merging if isinstance(spec, Recipe) else None
    adapters: list[Path] = []
    if merging:
        from backend.merge.on_hub import fetch_adapters

        adapters = fetch_adapters(merging, load_settings().models, token, report)
    places = Fetched(folder=base, adapters=tuple(adapters))
    if spec.converts and admit(LocalFiles(base)).pickled:
        places = places.model_copy(update={"folder": converted(base, target.parents[1]), "pickled": base})
    (folder / MODEL).write_text(places.model_dump_json(), encoding="utf-8")
    if isinstance(spec, Recipe) and spec.tuning:
        from backend.data.fetch import fetch_dataset, write_sources

        sources = fetch_dataset(spec.tuning, folder / "rows", token, report)
        write_sources(folder, sources)
    if isinstance(spec, Recipe) and any(isinstance(stage, CalibratedOptions) for stage in spec.stages):
        from backend.stages.calibration_data import fetch_calibration

        fetch_calibration(spec, folder, token, report)
    for index, options in _evaluations(spec):
        text = _text(spec, options, folder / "download.txt", token, report)
        length = longest_window(read_config(base), options.max_seq_length)
        if len(text.content.encode()) < length - 1:  # no token is shorter than a byte; one may stand before the text
            raise SpecError(
                f"'{text.name}' has {len(text.content.encode())} bytes, too few for one window of {length} tokens: give"
                " a longer text, or a smaller max_seq_length."
            )
        (folder / f"text-{index}.json").write_text(text.model_dump_json(), encoding="utf-8")
    seal(folder, target, Artifact(kind="model", stage="fetch", created=now()))


def _convert(job: Path, spec: Spec, target: Path, report: Report) -> None:
    """Convert the base model where its weights are pickled; the step's own folder says that this is done."""
    places = _fetched(job, spec)
    if places.pickled:
        convert_model(places.pickled, places.folder, report)
    seal(partial(target), target, Artifact(kind="model", stage=CONVERT, created=now()))


def _adopt(job: Path, spec: Publication, target: Path, token: str | None, report: Report) -> None:
    """Make an artifact of the folder that was named; the step's own folder says that this is done."""
    from backend.publish.adopt import adopt

    artifact = spec.artifact(job)
    shutil.rmtree(artifact, ignore_errors=True)  # of a run that was killed between the two
    adopt(spec.folder, artifact, spec.base_model, report, token)
    seal(partial(target), target, Artifact(kind="adopted", stage="adopt", created=now()))


def _evaluations(spec: Spec) -> Iterator[tuple[int, EvaluateOptions]]:
    if isinstance(spec, Evaluation):
        yield steps(spec).index("evaluate"), spec.options
    elif isinstance(spec, Recipe):
        for i, stage in enumerate(spec.stages):
            if stage.stage == "evaluate":
                yield i + spec.first, stage


def _text(spec: Spec, options: EvaluateOptions, draft: Path, token: str | None, report: Report) -> Text:
    """Give the text to measure on: the user's file, a data set, WikiText-2, or the embedded prose."""
    if options.text:
        path = Path(options.text)
        try:
            return Text(name=path.name, content=path.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError) as e:
            raise JobError(f"Could not read the text '{path.name}'. Give a text file in UTF-8.") from e
    if options.dataset or not needs_no_network(spec):
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


def _base(job: Path, spec: Spec) -> Path:
    return _fetched(job, spec).folder


def _adapters(job: Path, spec: Spec) -> list[Path]:
    if isinstance(spec, Recipe) and spec.tuning:
        return [stage_folder(job, spec, spec.first)]
    return list(_fetched(job, spec).adapters)


def _fetched(job: Path, spec: Spec) -> Fetched:
    place = stage_folder(job, spec, 0)
    open_artifact(place)
    if found := read_whole(place / MODEL, Fetched):
        return found
    raise JobError(f"'{place.name}/{MODEL}' cannot be read: retry, which fetches the model again.")


@contextmanager
def _weights(job: Path, recipe: Recipe, index: int, report: Report) -> Iterator[Weights]:
    """Open what a stage works on: the base model, or the merged one, from its folder if that is kept."""
    merging = recipe.merging
    at = recipe.stages.index(merging) + recipe.first if merging else 0
    kept = merging is not None and merging.keep and index > at
    with Checkpoint.of(stage_folder(job, recipe, at) if kept else _base(job, recipe)) as weights:
        if merging is None or kept:
            yield weights
        else:
            with merged(weights, _adapters(job, recipe), merging, report) as result:
                yield result


def _finetune(job: Path, recipe: Recipe, index: int, report: Report) -> None:
    """Train an adapter, in one process or in several."""
    from backend.processes.ranks import launch, processes, world_size
    from backend.stages.finetune import tune

    settings = load_settings()
    if world_size() == 1 and processes(settings) > 1:
        launch(job, index, settings, report)
        return
    target = stage_folder(job, recipe, index)
    folder = partial(target, keep=True)
    artifact = tune(recipe, base_in(_base(job, recipe)), stage_folder(job, recipe, 0), folder, report)
    if artifact is None:
        return
    sealed = seal(folder, target, artifact)
    assert sealed.training
    report.log(f"adapter: {sealed.size / 1e6:.1f} MB, {sealed.training.steps} steps in {sealed.seconds:.0f} s.")


def _make(job: Path, recipe: Recipe, index: int, report: Report) -> None:
    """Merge or quantize."""
    options = recipe.stages[index - recipe.first]
    assert options.stage in ("merge", "quantize")
    base, target = _base(job, recipe), stage_folder(job, recipe, index)
    folder = partial(target, keep=True)
    known = base_in(base)._replace(adapters=tuple(base_in(adapter) for adapter in _adapters(job, recipe)))
    started = time.monotonic()
    output = Resumable(folder)
    calibration = None
    with _weights(job, recipe, index, report) as weights:
        known = known._replace(rows=embedded(weights.config))
        plan = options.plan(weights.tensors, weights.config)
        if isinstance(options, CalibratedOptions):
            from backend.stages.calibration_data import windows

            measured = next((_measured_on(job, recipe, i) for i, _ in _evaluations(recipe)), None)
            read = windows(recipe, options, known, stage_folder(job, recipe, 0), measured, report)
            calibration = read.words
            METHODS[options.method].quantize(weights, output, options, read, report)
        elif options.stage == "quantize":
            METHODS[options.method].quantize(weights, output, options, report)
        elif options.keep:
            merge(weights, output, options, report)
        else:  # the adapters fit, which was all that could go wrong
            seal(folder, target, Artifact(kind="checked", stage="merge", created=now()))
            return
    seconds = time.monotonic() - started
    artifact = complete(recipe, options, known, plan, folder, report)
    report.progress("sealing", 0, 1, "files")
    found = {"seconds": round(seconds, 1), "calibration": calibration}
    sealed = seal(folder, target, artifact.model_copy(update=found), output.hashes)
    name = options.method if options.stage == "quantize" else "merged"
    report.log(f"{name}: {sealed.size / 1e6:.0f} MB in {seconds:.0f} s.")


def _evaluate(job: Path, spec: Spec, index: int, report: Report) -> None:
    """Measure every artifact that the stages before this one made, or the folder that was named."""
    options = dict(_evaluations(spec))[index]
    text = _measured_on(job, spec, index)
    base, target = _base(job, spec), stage_folder(job, spec, index)
    measured = [spec.folder] if isinstance(spec, Evaluation) else artifacts(job, MODELS)
    started, timed = time.monotonic(), dict[Path, float | None]()
    for result in measured:
        if (result / MANIFEST).is_file():
            verify(result)
        reference = _reference(job, spec, base, result)
        speeds = _speeds(reference, result, timed, report) if options.answers else {}
        metrics = measure(reference, result, text, options, report).model_copy(update=speeds)
        if (result / MANIFEST).is_file():
            record(result, metrics=metrics)
        report.log(
            f"{result.name}: KL {metrics.kl_mean:.4f}, top-1 agreement {metrics.top1_agreement:.1%}, perplexity"
            f" {metrics.perplexity:.2f} (reference {metrics.reference_perplexity:.2f})."
        )
    artifact = Artifact(
        kind="evaluation",
        stage="evaluate",
        options=options.model_copy(update={"text": text.name}).model_dump(exclude_none=True),
        versions=versions(),
        hardware=hardware(),
        seconds=round(time.monotonic() - started, 1),
        peak_memory_bytes=peak_memory_bytes(),
        metrics=metrics,
        created=now(),
    )
    seal(partial(target), target, artifact)


def _check(job: Path, spec: Spec, index: int, report: Report) -> None:
    """Try what a recipe has made, or the folder that was named, in the engine that serves it; see backend.check."""
    found, options = None, check_options(spec, index)
    for folder in _to_check(job, spec):
        known = verify(folder) if (folder / MANIFEST).is_file() else None
        base = spec.base if isinstance(spec, Checking | Publication) else None
        base = (base or trained_on(folder)) if is_adapter(folder) else None
        found = check(folder, base, options, load_settings(), report)
        if known:
            record(folder, check=found)
        report.log(f"{folder.name}: {found.words}")
    target = stage_folder(job, spec, index)
    seal(partial(target), target, Artifact(kind="checked", stage="check", check=found, created=now()))


def _to_check(job: Path, spec: Spec) -> list[Path]:
    """Give the models that were made; where there are none, the adapter."""
    if isinstance(spec, Publication):
        return [spec.artifact(job)]
    if isinstance(spec, Checking):
        return [spec.folder]
    return artifacts(job, MODELS) or artifacts(job)


def _speeds(reference: Path, result: Path, timed: dict[Path, float | None], report: Report) -> dict[str, Any]:
    """Time a packed model and its reference in their engine, before memory is taken; all others time themselves.

    Args:
        reference: Folder of the model that the result was made from.
        result: Folder of the result.
        timed: What was timed before, by its folder.
        report: Told what is timed.
    """
    from backend.quantize.packed import is_packed
    from backend.serve.engines import ENGINES, choose
    from backend.serve.speed import decode_speed

    if not is_packed(result):
        return {}
    try:
        name, _ = choose(result)
    except AppError as e:
        report.log(f"The speed of '{result.name}' is not measured: {e}")
        return {}
    for folder in (reference, result):
        if folder not in timed:
            timed[folder] = decode_speed(folder, name, load_settings(), report)
    if timed[reference] is None or timed[result] is None:
        return {}
    return {
        "reference_tokens_per_second": timed[reference],
        "tokens_per_second": timed[result],
        "engine": ENGINES[name].title,
    }


def _measured_on(job: Path, spec: Spec, index: int) -> Text:
    place = stage_folder(job, spec, 0)
    if found := read_whole(place / f"text-{index}.json", Text):
        return found
    raise JobError(f"The text in '{place.name}' cannot be read: retry, which fetches it again.")


def _reference(job: Path, spec: Spec, base: Path, result: Path) -> Path:
    """Give what a result is measured against: what it was made from, which is the merged model where there is one."""
    if isinstance(spec, Recipe) and spec.merging:
        whole = stage_folder(job, spec, spec.stages.index(spec.merging) + spec.first)
        return base if whole == result else whole
    return base


def _publish(job: Path, spec: Spec, target: Path, token: str | None, report: Report) -> None:
    from backend.publish.push import publish

    if isinstance(spec, Publication):
        folders, options = [spec.artifact(job)], spec.options
    else:
        assert isinstance(spec, Recipe)
        assert spec.publish
        folders, options = artifacts(job)[-1:], spec.publish
    published = [publish(folder, options, token, report).model_dump(mode="json") for folder in folders]
    folder = partial(target)
    (folder / PUBLISHED).write_text(json.dumps(published), encoding="utf-8")
    seal(folder, target, Artifact(kind="published", stage="publish", created=now()))
