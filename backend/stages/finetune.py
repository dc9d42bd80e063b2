"""The finetune step: an adapter is trained, in one process or in several; what it is estimated from and pinned to."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from backend.artifacts.sealing import partial, seal
from backend.data.options import DEMO_DATASET, is_file
from backend.finetune.options import FinetuneOptions
from backend.models.facts import ModelFacts
from backend.processes.ranks import launch, processes, world_size
from backend.progress import Report, silent
from backend.settings import load_settings
from backend.stages.companions import base_in, base_of
from backend.stages.step import Need, Planned, Step
from backend.stages.work import Work


def run(work: Work, token: str | None, report: Report) -> None:
    """Train an adapter."""
    from backend.stages.train import tune

    settings = load_settings()
    if world_size() == 1 and processes(settings) > 1:
        launch(work.job, work.number, settings, report)
        return
    folder = partial(work.target, keep=True)
    artifact = tune(work.recipe, base_in(work.fetched.folder), work.fetch_folder, folder, report)
    if artifact is None:
        return
    sealed = seal(folder, work.target, artifact)
    assert sealed.training
    report.log(f"adapter: {sealed.size / 1e6:.1f} MB, {sealed.training.steps} steps in {sealed.seconds:.0f} s.")


def pin(stage: FinetuneOptions, facts: ModelFacts, token: str | None) -> Any:
    """Check it, read rows of this machine, and pin a data set to its commit."""
    from backend.data.examine import load
    from backend.data.fetch import fetch_dataset, pin

    stage.check(facts)
    if stage.dataset == DEMO_DATASET or is_file(stage.dataset):
        with TemporaryDirectory() as folder:
            sources = fetch_dataset(stage, Path(folder), token, silent())
            load(sources.train, stage, sources.validation)  # what it asks is asked now
    return pin(stage, token)


def fetch(stage: FinetuneOptions, work: Work, folder: Path, token: str | None, report: Report) -> None:
    """Bring the rows."""
    from backend.data.fetch import fetch_dataset, write_sources

    write_sources(folder, fetch_dataset(stage, folder / "rows", token, report))


def need(stage: FinetuneOptions, planned: Planned) -> Need:
    """Estimate a training, and find what makes it fit where it does not."""
    from backend.finetune.costs import sizes_of, training_cost, way_out

    facts = planned.facts
    machine = planned.machine
    sizes = sizes_of(stage, planned.survey)
    cost = training_cost(facts, stage, sizes, machine)
    need = Need(cost.memory, planned.around + cost.seconds, _files(stage, planned), training=cost)
    if cost.needed <= machine.room:
        return need
    return need._replace(remedy=way_out(facts, stage, sizes, machine, machine.room) or need.remedy)


def _files(stage: FinetuneOptions, planned: Planned) -> dict[str, int]:
    """Return the bytes of an adapter's files, but for some small ones that PEFT and transformers write."""
    from backend.finetune.costs import adapter_parameters

    base = base_of(planned.facts)
    files = {"adapter_model.safetensors": 4 * adapter_parameters(planned.facts, stage)}
    files |= {name: source.files[name] for name, source in base.copied().items()}
    return files | {name: len(content) for name, content in base.texts(planned.recipe).items()}


def words(stage: FinetuneOptions) -> tuple[str, str]:
    """Say what it learns from."""
    rows = "bundled questions and answers" if stage.dataset == DEMO_DATASET else stage.dataset.rpartition("/")[2]
    return "Fine-tune an adapter", f"on {rows}"


STEP = Step(run, pin=pin, fetch=fetch, need=need, words=words, alone=True, stoppable=True, machines=True)
