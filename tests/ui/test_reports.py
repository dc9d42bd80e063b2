"""Reports of answers to rows and of benchmarks, as the page shows them."""

from dataclasses import replace
from pathlib import Path

import pytest

from backend.artifacts.artifact import Artifact, Metrics, Training, now
from backend.artifacts.compared import Answered, Change, Compared, ComparedRow
from backend.artifacts.scores import Score, Scores
from backend.data.options import RowsOptions
from backend.evaluate import EvaluateOptions
from backend.jobs.store import Job, JobState
from backend.recipes import parse_recipe
from tests.support.published import METRICS
from ui.jobs.report import report
from ui.jobs.rows import rows
from ui.recipe.draft import parts
from ui.studio import Result

HELPED = Change(loss=-0.9, interval=(-1.0, -0.8), better=36, worse=4, gained=9, lost=1)
COST = Change(loss=0.05, interval=(0.02, 0.08), better=10, worse=30, gained=0, lost=1)
BASE = Answered(name="base", loss=2.3, right=3)
TUNED = Answered(name="tuned", loss=1.4, right=11, change=HELPED)


def quantized(loss: float) -> Answered:
    change = HELPED.model_copy(update={"loss": loss - 2.3})
    return Answered(name="quantized", loss=loss, right=10, change=change, cost=COST)


def result(index: int, kind: str, models: tuple[Answered, ...], **options: object) -> Result:
    job = Job(
        id="j", owner="me", kind="recipe", spec={"base_model": "me/tiny"}, state=JobState.COMPLETED, steps=(), created=0
    )  # fmt: skip
    found = Compared(data="mine.csv", held_out=True, rows=40, tokens=512, short=20, models=models)
    metrics: Metrics = METRICS.model_copy(update={"rows": found})
    artifact = Artifact(kind=kind, stage=kind, options=dict(options), metrics=metrics, created=now())
    return Result(job, Path(f"{index}-{kind}"), artifact)


MERGED = result(2, "merged", (BASE, TUNED), stage="merge")
GPTQ = result(3, "quantized", (BASE, TUNED, quantized(1.45)), stage="quantize", method="gptq", bits=4, group_size=64)
NF4 = result(4, "quantized", (BASE, TUNED, quantized(1.6)), stage="quantize", method="nf4")
WORST = ComparedRow(row=7, prompt="<b>Why?</b>", expected="So.", answers=("A", "", None), losses=(3.0, 2.0, 2.5))


def test_whether_tuning_helped_and_what_quantizing_cost_stand_first_and_the_worst_rows_side_by_side() -> None:
    told = rows([MERGED, GPTQ], {GPTQ.key: (WORST,)})
    assert "<p>Tuning helped: over 40 held-out rows the loss of the answers fell from 2.300 to 1.400" in told
    assert "<p>Quantizing cost 0.050 [0.020, 0.080] nats a token of the answers, 6% of what tuning had gained" in told
    assert told.count("Tuning helped") == 1
    assert 'class="panel quality good"' in told
    assert "<span>10 of 20<small>9 gained, 1 lost</small></span></td>" in told
    assert [row.count("<td ") for row in told.split("<tr>")[2:]] == [5, 5, 5]  # what the base model lacks is left empty
    assert "The 1 row that the quantized model answers worst" in told
    assert "Row 7 · &lt;b&gt;Why?&lt;/b&gt;" in told
    assert [
        told.index(text) for text in ("<p>So.</p>", "<p>A</p>", "<i>nothing</i>", "<i>was not asked</i>")
    ] == sorted(told.index(text) for text in ("<p>So.</p>", "<p>A</p>", "<i>nothing</i>", "<i>was not asked</i>"))


def test_variants_share_one_table_and_each_says_what_it_cost() -> None:
    told = rows([MERGED, GPTQ, NF4], {})
    assert told.count("<tr><th scope") == 4
    assert "GPTQ 4 bit · 64: Quantizing cost" in told
    assert "NF4: Quantizing cost" in told


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (HELPED.model_copy(update={"loss": 0.9, "interval": (0.8, 1.0)}), "poor"),
        (HELPED.model_copy(update={"interval": (-1.0, 0.1)}), "changed"),
    ],
)
def test_a_training_that_hurt_or_shows_nothing_is_not_green(change: Change, kind: str) -> None:
    made = result(2, "merged", (BASE, TUNED.model_copy(update={"change": change})), stage="merge")
    assert f'class="panel quality {kind}"' in rows([made], {})


def test_who_kept_no_rows_out_of_the_training_is_told_what_that_would_show() -> None:
    training = Training(
        dataset="demo", rows=9, validation_rows=0, tokens=90, learned_tokens=50, steps=1, planned_steps=1, train_loss=2
    )  # fmt: skip
    tuned = replace(MERGED, artifact=MERGED.artifact.model_copy(update={"training": training, "metrics": METRICS}))
    assert "Set <b>Validation size</b>" in rows([tuned], {})
    plain = replace(MERGED, artifact=MERGED.artifact.model_copy(update={"metrics": METRICS}))
    assert rows([plain], {}) == ""


def test_benchmarks_stand_in_the_report_with_their_standard_errors() -> None:
    score = Score(task="arc_easy", metric="acc", value=0.61, stderr=0.02, reference=0.63, reference_stderr=0.02,
                  samples=200, num_fewshot=0)  # fmt: skip
    scores = Scores(harness="lm-eval 0.4.13", chat_template=False, scores=(score,))
    told = report(GPTQ, METRICS.model_copy(update={"tasks": scores}))
    assert (
        "arc_easy<small>acc, 200 examples, 0-shot</small></th><td>0.6300 ± 0.0200</td><td>0.6100 ± 0.0200</td>" in told
    )
    assert "Tasks of lm-eval 0.4.13, without the chat template" in told


def test_the_page_shows_rows_by_their_name_and_leaves_to_the_yaml_what_says_more() -> None:
    def shown(**rows: object) -> EvaluateOptions | None:
        measuring = {"stage": "evaluate", "rows": {"dataset": "me/rows", **rows}}
        stages = [{"stage": "quantize", "method": "nf4"}, measuring]
        found = parts(parse_recipe({"base_model": "demo", "stages": stages}))
        return found.evaluate if found else None

    plain = shown()
    assert plain is not None
    assert plain.rows == RowsOptions(dataset="me/rows")
    assert shown(user_column="question") is None
