"""The finetune step: rows are read, rendered and learned from; what comes out is an adapter and how it was made."""

import json
import time
from itertools import islice
from pathlib import Path
from typing import Any

from backend.executors.ranks import rank
from backend.finetune.chat_templates import CHAT_TEMPLATES
from backend.finetune.fetch import read_sources
from backend.finetune.loading import Dataset, load
from backend.finetune.reader import Reader, literals, open_reader
from backend.finetune.samples import Sample
from backend.finetune.survey import Survey, render, survey
from backend.finetune.training import Outcome, Rows, compute_dtype, finetune
from backend.jobs.results import Base, accompany
from backend.model_folder import set_stops, set_template
from backend.models.artifacts import SURVEY, Artifact, Training, now, versions
from backend.models.machine import hardware, peak_memory_bytes
from backend.progress import Report
from backend.recipes import Recipe

PROMPTS = 3
"""Questions of the validation rows whose answers are shown at every validation."""

UNORDERED = ("target_modules", "modules_to_save", "exclude_modules")
"""Settings that PEFT keeps as sets, and so writes in another order each run."""

PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets", "safetensors")


def tune(recipe: Recipe, base: Base, fetched: Path, folder: Path, report: Report) -> Artifact | None:
    """Do the training that a recipe begins with, alone or as one of several processes that call this together.

    Args:
        recipe: What is done.
        base: The base model.
        fetched: The fetch step's folder.
        folder: Where the adapter is written; checkpoints of an earlier run may lie there.
        report: Told all of it.

    Returns:
        What is to be recorded, or None where another process completes the folder.

    Raises:
        SpecError: The rows leave a question open, or nothing to learn; the row, the option.
        HardwareError: The memory does not do; what would fit.
    """
    options = recipe.tuning
    assert options
    sources = read_sources(fetched)
    data = load(sources.train, options, sources.validation)
    for finding in data.examination.findings:
        report.log(finding.text)
    reader = open_reader(base.folder, data, options)
    rows, seen = _rows(data, reader, report)
    if rank() == 0:
        (folder / SURVEY).write_text(seen.model_dump_json(), encoding="utf-8")
    started = time.monotonic()
    outcome = finetune(base.folder, rows, reader.tokenizer, folder, options, report)
    if rank() > 0:
        return None
    _complete(folder, base, reader, recipe)
    measured = {"hardware": hardware(), "peak_memory_bytes": peak_memory_bytes(), "warnings": tuple(report.warnings)}
    measured["seconds"] = round(time.monotonic() - started, 1)
    return _artifact(recipe, base, data, seen, outcome).model_copy(update=measured)


def _rows(data: Dataset, reader: Reader, report: Report) -> tuple[Rows, Survey]:
    """Render what is trained on and measured on, and say what the model will see."""
    for finding in literals(data, reader):
        report.warn(finding.text)
    train, masked = render(data.train(), reader.renderer)
    validation, _ = render(data.validation(), reader.renderer)
    seen = survey(train, masked, reader.tokenizer)
    report.log(f"The model will see {seen.words}")
    asked = islice((s for s in data.validation() if len(s.messages) > 1), PROMPTS)
    prompts = [(sample.messages[-2].content, _question(sample, reader.tokenizer)) for sample in asked]
    return Rows(train, validation, prompts), seen


def _question(sample: Sample, tokenizer: Any) -> list[int]:
    """Give the tokens of a conversation up to its last answer."""
    turns = [{"role": message.role, "content": message.content} for message in sample.messages[:-1]]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _complete(folder: Path, base: Base, reader: Reader, recipe: Recipe) -> None:
    """Make the folder one that can leave this machine: no path in it, no pickle, and what generation needs to stop.

    The base model's own files stay as they are but for a template that was given, and stops that were learned: saved
    again by a library they would name its version's classes and settings, and it refuses some that others wrote.
    """
    for name in ("README.md", "training_args.bin"):
        (folder / name).unlink(missing_ok=True)
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = base.origin.base_model or base.folder.name
    settings |= {name: sorted(value) for name in UNORDERED if isinstance(value := settings.get(name), list)}
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    accompany(recipe, base, folder)
    assert recipe.tuning
    given = CHAT_TEMPLATES.get(recipe.tuning.chat_template)
    if given and reader.tokenizer.chat_template == given:
        set_template(folder, given)
    set_stops(folder, reader.stops)


def _artifact(recipe: Recipe, base: Base, data: Dataset, seen: Survey, outcome: Outcome) -> Artifact:
    public = recipe.public(base.origin.base_model or base.folder.name).tuning
    assert public
    as_run = {"bnb_4bit_compute_dtype": compute_dtype(public)}
    if public.quantization in ("nf4", "fp4"):
        as_run["bnb_4bit_quant_type"] = public.quantization
    training = Training(
        dataset=public.dataset,
        dataset_revision=public.revision,
        rows=seen.rows,
        validation_rows=data.examination.validation,
        tokens=seen.tokens,
        learned_tokens=seen.learned_tokens,
        **outcome._asdict(),
    )
    return Artifact(
        kind="adapter",
        stage="finetune",
        base_model=base.origin.base_model,
        revision=base.origin.revision,
        origin=base.origin.origin,
        training=training,
        options=public.model_dump(mode="json", exclude_none=True) | as_run,
        versions=versions(PACKAGES),
        created=now(),
    )
