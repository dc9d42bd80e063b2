"""Benchmarks of lm-eval, run by it, in an environment of its own over the app's; who lacks it is told how to get it."""

import json
import os
import subprocess
from importlib.util import find_spec

import pytest
import torch

from backend.errors import SpecError
from backend.evaluate import EvaluateOptions
from backend.evaluate.tasks import check_installed
from backend.models.loading import load_causal_lm, load_tokenizer
from backend.options import parse
from backend.processes.child import ROOT
from backend.progress import silent
from backend.publish.card.card import build_card
from backend.quantize import METHODS
from backend.recipes import parse_recipe
from backend.weights.checkpoint import Checkpoint
from backend.weights.output import Output

CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Spain": "Madrid", "Egypt": "Cairo", "Peru": "Lima",
            "Cuba": "Havana", "Norway": "Oslo"}  # fmt: skip
TASK = """
task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "The capital of {{{{country}}}} is"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""


def capitals(folder):
    names = list(CAPITALS.values())
    rows = [{"country": c, "choices": names[i % 5 : i % 5 + 4]} for i, c in enumerate(CAPITALS)]
    rows = [row | {"answer": row["choices"].index(CAPITALS[row["country"]])} for row in rows if
            CAPITALS[row["country"]] in row["choices"]]  # fmt: skip
    data, task = folder / "capitals.jsonl", folder / "capitals.yaml"
    data.write_text("\n".join(map(json.dumps, rows)))
    task.write_text(TASK.format(data=data))
    return task, rows


def accuracy(folder, rows):
    """Return how often the right choice is the likeliest text, in float64."""
    model, tokenizer = load_causal_lm(folder, silent()), load_tokenizer(folder)
    right = 0
    for row in rows:
        prompt = f"The capital of {row['country']} is"
        scores = []
        for choice in row["choices"]:
            ids = tokenizer(f"{prompt} {choice}", add_special_tokens=False)["input_ids"]
            start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
            with torch.inference_mode():
                logs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            scores.append(sum(logs[i - 1, ids[i]].item() for i in range(start, len(ids))))
        right += scores.index(max(scores)) == row["answer"]
    return right / len(rows)


@pytest.mark.real
def test_tasks_are_scored_on_both_models_and_stand_in_report_and_card(make_artifact, tiny_model, tmp_path):
    task, rows = capitals(tmp_path)
    options = METHODS["nf4"].Options()
    folder = make_artifact(
        quantize=lambda base, output: METHODS["nf4"].quantize(Checkpoint.of(base), Output(output), options, silent())
    )
    python = ROOT / ".venv-tasks" / "bin" / "python"
    command = [python, "-m", "backend", "evaluate", folder, "--reference", tiny_model, "--tasks", task, "--no-answers",
               "--max-seq-length", "64", "--num-samples", "1", "--json"]  # fmt: skip
    env = os.environ | {"WEIGHTSMITH_DATA": str(tmp_path / "data")}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    [score] = json.loads(done.stdout)["tasks"]["scores"]
    assert (score["task"], score["metric"], score["samples"], score["num_fewshot"]) == ("capitals", "acc", len(rows), 0)
    assert score["reference"] == pytest.approx(accuracy(tiny_model, rows))
    assert score["value"] == pytest.approx(accuracy(folder, rows))
    card = build_card(folder, None)
    assert f"| capitals | acc | {len(rows)} examples, 0-shot | {score['reference']:.4f} ± " in card
    assert "Tasks of lm-eval 0." in card
    assert str(tmp_path) not in card


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="it is installed beside the app here")
def test_who_lacks_lm_eval_is_told_how_to_install_it_before_anything_starts():
    with pytest.raises(
        SpecError, match=r"tasks: lm-eval runs them and is not installed here: run `pip install lm-eval`"
    ):
        check_installed(EvaluateOptions(tasks=("arc_easy",)))
    check_installed(EvaluateOptions())


def test_a_file_of_a_task_is_taken_from_the_owner_of_the_machine_alone(tmp_path):
    task, _ = capitals(tmp_path)
    measuring = {"stage": "evaluate", "tasks": [str(task)]}
    stages = [{"stage": "quantize", "method": "nf4"}, measuring]
    with pytest.raises(SpecError, match=r"tasks: .* is a file of this machine: name a task of lm-eval"):
        parse_recipe({"base_model": "demo", "stages": stages})
    recipe = parse_recipe({"base_model": "demo", "stages": stages}, paths=True)
    assert recipe.stages[1].tasks == (str(task),)
    assert recipe.public("demo").stages[1].tasks == ("capitals.yaml",)
    with pytest.raises(SpecError, match="is not a task's name"):
        parse(EvaluateOptions, {"tasks": ["arc easy; rm"]})
