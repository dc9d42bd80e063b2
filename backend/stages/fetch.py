"""The fetch step: the base model comes, and what each stage reads beside it; its folder says where the model lies."""

from backend.artifacts.artifact import Artifact, now
from backend.artifacts.sealing import partial
from backend.hub.files import LocalFiles
from backend.hub.ids import DEMO
from backend.models.admission import admit
from backend.models.fetch import fetch_model
from backend.progress import Report
from backend.settings import load_settings
from backend.spec import Preview
from backend.stages import STEPS
from backend.stages.convert import converted
from backend.stages.step import Need, Planned, Step
from backend.stages.work import MODEL, Fetched, Work

DEMO_BYTES, DEMO_SECONDS = 1_000_000_000, 18.0  # making the bundled model's folder, with transformers


def run(work: Work, token: str | None, report: Report) -> None:
    """Bring what the job begins with; a look at rows needs of a model only its tokenizer."""
    if isinstance(work.options, Preview):
        from backend.stages.preview import fetch

        fetch(work, token, report)
        return
    wanted = work.spec.wanted
    assert wanted
    base = fetch_model(wanted.model, wanted.revision, load_settings().models, token, report, wanted.converts)
    folder = partial(work.target)
    places = Fetched(folder=base)
    if wanted.converts and admit(LocalFiles(base)).pickled:
        places = Fetched(folder=converted(base, work.job), pickled=base)
    (folder / MODEL).write_text(places.model_dump_json(), encoding="utf-8")
    for index, asked in enumerate(work.spec.plan):
        if asked.options is not None:
            STEPS[asked.step].fetch(asked.options, work._replace(number=index), folder, token, report)
    work.seal(Artifact(kind="model", stage="fetch", created=now()), folder)


def need(stage: None, planned: Planned) -> Need:
    """Estimate bringing the base model; the bundled one is made by transformers."""
    if planned.facts.model == DEMO and planned.fetching:
        return Need(DEMO_BYTES, planned.around + DEMO_SECONDS)
    return Need(planned.speed.worker_bytes, planned.around)


STEP = Step(run, need=need, online=True, repeats=True)
