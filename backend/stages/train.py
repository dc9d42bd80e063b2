"""What the finetune step does in each of its processes: rows are read, rendered and learned from."""

import json
import time
from collections.abc import Set
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from backend.artifacts.artifact import SURVEY, Artifact, Training, now, versions
from backend.data.examine import Dataset, load
from backend.data.fetch import read_sources
from backend.data.findings import Ledger, refusal
from backend.finetune.chat_templates import CHAT_TEMPLATES
from backend.finetune.qlora import Outcome, Rows, compute_dtype, finetune
from backend.finetune.reader import Reader, literals, open_reader
from backend.finetune.rendered import Survey, render, survey
from backend.machine.hardware import hardware, peak_memory_bytes
from backend.model_folder import set_stops, set_template
from backend.models.chat_template import TemplateRefusal, chat_text
from backend.processes.ranks import rank
from backend.progress import Report
from backend.recipes import Recipe
from backend.stages.companions import Base, accompany
from backend.weights.codes import CODES

PROMPTS = 3
"""Questions of the validation rows whose answers are shown at every validation."""

UNORDERED = ("target_modules", "target_parameters", "modules_to_save", "exclude_modules")
"""Settings that PEFT keeps as sets, and so writes in another order each run."""

PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets", "safetensors")


def tune(recipe: Recipe, base: Base, fetched: Path, folder: Path, report: Report) -> Artifact | None:
    """Do the training that a recipe begins with, alone or as one of several processes that call this together.

    Args:
        recipe: What is done.
        base: The base model.
        fetched: The fetch step's folder.
        folder: Where the adapter is written; checkpoints of an earlier run may lie there.
        report: Receives all of it.

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
    rows, seen = _rows(data, reader, options.on_fault == "drop", report)
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


def _rows(data: Dataset, reader: Reader, drop: bool, report: Report) -> tuple[Rows, Survey]:
    """Render what is trained on and measured on, and say what the model will see.

    Raises:
        SpecError: The chat template does not take a row, and such rows are not to be dropped; or none is left.
    """
    for finding in literals(data, reader):
        report.warn(finding.text)
    ledger, held_out = Ledger(data.examination.name), Ledger(f"{data.examination.name}, validation")
    train, masked = render(data.train(), reader.renderer, ledger)
    validation, left_out = render(data.validation(), reader.renderer, held_out)
    seen = survey(train, masked, reader.tokenizer, ledger.count)
    said = [*ledger.findings(seen.looked_at, drop),
            *held_out.findings(len(validation) + left_out + held_out.count, drop)]  # fmt: skip
    if not drop and said:
        raise refusal(said)
    if not train and ledger.count:
        raise ledger.unusable(seen.looked_at)
    for finding in said:
        report.warn(finding.text)
    report.log(f"The model will see {seen.words}")
    return Rows(train, validation, _questions(data, {row.row for row in validation}, reader.tokenizer)), seen


def _questions(data: Dataset, rows: Set[int], tokenizer: Any) -> list[tuple[str, list[int]]]:
    """Return the last questions of some validation rows, and the tokens of the conversations that ask them."""
    found = []
    asked = (s for s in data.validation() if s.row in rows and len(s.messages) > 1 and not s.tools)
    for sample in islice(asked, PROMPTS):
        turns = [{"role": message.role, "content": message.content} for message in sample.messages[:-1]]
        with suppress(TemplateRefusal):  # it may not take a conversation that does not end with an answer
            text = chat_text(tokenizer, turns, prompt=True)
            found.append((turns[-1]["content"], tokenizer(text, add_special_tokens=False)["input_ids"]))
    return found


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
    written = str(reader.tokenizer.chat_template)
    if given and written.endswith(given):
        set_template(folder, written)
    set_stops(folder, reader.stops)


def _artifact(recipe: Recipe, base: Base, data: Dataset, seen: Survey, outcome: Outcome) -> Artifact:
    public = recipe.public(base.origin.base_model or base.folder.name).tuning
    assert public
    as_run = {"bnb_4bit_compute_dtype": compute_dtype(public)}
    if public.quantization in CODES:
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
