"""Stages: which files of this machine each of them names, and that a run over changed files is another run."""

import os
from pathlib import Path
from typing import Any

import pytest

from backend.check import CheckOptions
from backend.evaluate import EvaluateOptions
from backend.finetune.options import FinetuneOptions
from backend.jobs.foreground import identity
from backend.merge.options import MergeOptions
from backend.publish.options import PublishOptions
from backend.quantize import METHODS
from backend.recipes import Recipe, parse_recipe
from backend.spec import Preview, Spec
from backend.stages.kinds import Checking, Evaluation, Publication

OPTIONS = [FinetuneOptions, MergeOptions, EvaluateOptions, CheckOptions, *(m.Options for m in METHODS.values())]


def recipe(folder: Path, *stages: dict[str, Any], model: str = "demo") -> Recipe:
    return parse_recipe({"base_model": model, "stages": list(stages)}, paths=True, folder=folder)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options.__module__)
def test_a_field_that_takes_a_file_is_one_of_the_names(options: Any) -> None:
    fields = {name: field.json_schema_extra or {} for name, field in options.model_fields.items()}
    assert {name for name, extra in fields.items() if extra.get("file")} <= set(options.NAMES) <= set(fields)


def _recipes(folder: Path) -> dict[str, tuple[Spec, Path]]:
    """Specs, each with a file that it reads."""
    for name in ("rows.jsonl", "more.jsonl", "prose.txt"):
        (folder / name).write_text("once upon a time")
    for name in ("model", "adapter", "made"):
        (folder / name / "deep").mkdir(parents=True)
        (folder / name / "deep" / "config.json").write_text("{}")
    rows, more, prose = (str(folder / name) for name in ("rows.jsonl", "more.jsonl", "prose.txt"))
    tune, nf4 = {"stage": "finetune", "dataset": rows}, {"stage": "quantize", "method": "nf4"}
    gptq = {"stage": "quantize", "method": "gptq", "calibration": prose}
    merge = {"stage": "merge", "adapters": [str(folder / "adapter")]}
    inside, made = Path("deep") / "config.json", folder / "made"
    measured = EvaluateOptions.model_validate({"text": prose})
    tuned = FinetuneOptions.model_validate({"dataset": rows}, context={"paths": True})
    return {
        "rows": (recipe(folder, tune), Path(rows)),
        "validation rows": (recipe(folder, tune | {"validation_dataset": more}), Path(more)),
        "calibration": (recipe(folder, gptq), Path(prose)),
        "calibration of the second": (recipe(folder, nf4, gptq | {"calibration": more}), Path(more)),
        "text": (recipe(folder, nf4, {"stage": "evaluate", "text": prose}), Path(prose)),
        "adapter": (recipe(folder, merge), folder / "adapter" / inside),
        "model": (recipe(folder, nf4, model=str(folder / "model")), folder / "model" / inside),
        "measured folder": (Evaluation(folder=made, reference="demo", options=measured), made / inside),
        "text of a measuring": (Evaluation(folder=made, reference="demo", options=measured), Path(prose)),
        "reference": (Evaluation(folder=made, reference=str(folder / "model"), options=measured),
                      folder / "model" / inside),
        "checked folder": (Checking(folder=made, options=CheckOptions()), made / inside),
        "base of a checked adapter": (Checking(folder=made, base=folder / "model", options=CheckOptions()),
                                      folder / "model" / inside),
        "published folder": (Publication(folder=made, options=PublishOptions(repo_id="me/x")), made / inside),
        "rows that are looked at": (Preview(base_model="demo", options=tuned), Path(rows)),
    }  # fmt: skip


def test_a_run_over_a_file_that_has_changed_is_another_run(tmp_path: Path) -> None:
    for what, (spec, file) in _recipes(tmp_path).items():
        first = identity(spec)
        assert identity(spec) == first, what
        before = file.stat()
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000_000))
        assert identity(spec) != first, what


def test_names_of_files_are_anchored_and_made_public_and_those_of_the_hub_stay(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "adapter").mkdir()
    tune = {"stage": "finetune", "dataset": "me/rows", "validation_dataset": "rows.jsonl"}
    gptq = {"stage": "quantize", "method": "gptq", "calibration": "rows.jsonl"}
    made = recipe(tmp_path, tune, {"stage": "merge"}, gptq, {"stage": "evaluate", "text": "prose.txt"})
    made = made.anchored(tmp_path)
    assert made.files() == [tmp_path / name for name in ("rows.jsonl", "rows.jsonl", "prose.txt")]
    assert [stage.on_hub() for stage in made.stages] == [["me/rows"], [], [], []]
    assert made.on_hub
    public = made.public("demo")
    assert str(tmp_path) not in public.to_yaml()
    tuned, merging, quantized, measured = public.stages
    assert (tuned.validation_dataset, merging.adapters) == ("rows.jsonl", ())
    assert (quantized.calibration.dataset, measured.text) == ("rows.jsonl", "prose.txt")
    merge = {"stage": "merge", "adapters": ["me/adapter", str(tmp_path / "adapter")]}
    several = recipe(tmp_path, merge)
    assert several.stages[0].files() == {"adapters[1]": tmp_path / "adapter"}
    assert several.public("demo").stages[0].adapters == ("me/adapter", "adapter")
    assert not recipe(tmp_path, {"stage": "finetune"}, {"stage": "merge"}).on_hub


def test_each_check_runs_with_its_own_options() -> None:
    nf4 = {"stage": "quantize", "method": "nf4"}
    checks = [{"stage": "check", "engine": "transformers"}, {"stage": "check", "engine": "vllm"}]
    made = parse_recipe({"base_model": "demo", "stages": [nf4, *checks], "publish": {"repo_id": "me/x"}})
    assert [made.plan[index].options.engine for index in (2, 3)] == ["transformers", "vllm"]
    without = parse_recipe({"base_model": "demo", "stages": [nf4], "publish": {"repo_id": "me/x"}})
    assert without.plan[2].options == CheckOptions()
    checking = Checking(folder=Path("/x"), options=CheckOptions(engine="vllm"))
    assert checking.plan[0].options.engine == "vllm"
