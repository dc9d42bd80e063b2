"""The rows that an evaluate step has answered: those that it names, or those that the recipe's training kept out."""

import heapq
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import TypeAdapter

from backend.artifacts.compared import Compared, ComparedRow, ModelName
from backend.data.examine import Dataset, load
from backend.data.fetch import read_sources
from backend.data.findings import Ledger
from backend.data.options import DatasetOptions, RowsOptions, is_file
from backend.data.samples import Sample
from backend.disk import read_whole, write_whole
from backend.errors import SpecError
from backend.evaluate import EvaluateOptions
from backend.model_folder import read_config, stops_in
from backend.models.config import context_length, embedded, longest_window
from backend.options import faults_of
from backend.progress import Report
from backend.recipes import Recipe
from backend.stages.work import Work

if TYPE_CHECKING:  # the page reads what was found, and needs none of that
    from backend.evaluate.answering import Rows

_SHOWN = TypeAdapter(tuple[ComparedRow, ...])


class Chosen(NamedTuple):
    """Samples that are answered."""

    data: str  # what a card calls them
    held_out: bool
    samples: tuple[Sample, ...]
    longest: int  # tokens of a row at most


def chosen(work: Work, report: Report) -> Chosen | None:
    """Return the samples that are answered, if there are any; those with the smallest hashes where there are more.

    Raises:
        SpecError: The rows leave a question open.
    """
    options: EvaluateOptions = work.options
    recipe = work.spec.carried_out
    tuning = recipe.tuning if isinstance(recipe, Recipe) else None
    if not options.num_rows or not (options.rows or tuning):
        return None
    sources = read_sources(work.fetch_folder) if tuning else None
    trained = load(sources.train, tuning, sources.validation) if tuning and sources else None
    if options.rows:
        found = _named(options.rows, work, trained, report)
    else:
        assert trained
        assert tuning
        public = tuning.with_files({field: path.name for field, path in tuning.files().items()})
        data = public.validation_dataset or public.dataset
        found = Chosen(data, True, _few(trained.validation(), options.num_rows), options.max_seq_length)
        if not found.samples:
            report.log("No rows were kept out of the training (validation_size): whether it helped is not measured.")
    longest = min(options.max_seq_length, tuning.max_length) if tuning else options.max_seq_length
    return found._replace(longest=longest) if found.samples else None


def _named(rows: RowsOptions, work: Work, trained: Dataset | None, report: Report) -> Chosen:
    """Return the rows that the step names, but for those that were trained on."""
    options = DatasetOptions.all_of(rows)
    with faults_of("rows"):
        found = list(load(read_sources(work.fetch_folder / f"rows-{work.number}").train, options).train())
    seen = {sample.digest for sample in trained.train()} if trained else set[int]()
    kept = [sample for sample in found if sample.digest not in seen]
    if left := len(found) - len(kept):
        report.log(f"{left} of {len(found)} rows were trained on: they are not answered.")
    data = Path(rows.dataset).name if is_file(rows.dataset) else rows.dataset
    return Chosen(data, False, _few(kept, work.options.num_rows), work.options.max_seq_length)


def _few(samples: Iterable[Sample], most: int) -> tuple[Sample, ...]:
    few = heapq.nsmallest(most, samples, key=lambda sample: sample.digest)
    return tuple(sorted(few, key=lambda sample: sample.row))


def rendered_rows(chosen: Chosen, folder: Path, report: Report) -> "Rows | None":
    """Render samples as a model reads them; return None where there is nothing that it can read.

    Args:
        chosen: The samples.
        folder: Of the model: tokenizer, chat template, stops.
        report: Receives what is left out.
    """
    from backend.evaluate.answering import WRITTEN, Row, Rows
    from backend.finetune.rendered import rendered
    from backend.finetune.rendering import Renderer, stops_of
    from backend.models.loading import load_tokenizer

    tokenizer = load_tokenizer(folder)
    if not tokenizer.chat_template and any(sample.messages for sample in chosen.samples):
        report.log(f"'{folder.name}' has no chat template: its answers to rows are not compared.")
        return None
    stops = sorted(stops_of(tokenizer, stops_in(folder)))
    length = longest_window(read_config(folder), chosen.longest)
    renderer, ledger = Renderer(tokenizer, "completion", length, stops), Ledger(chosen.data)
    samples = {sample.row: sample for sample in chosen.samples}
    whole = [row for row in rendered(chosen.samples, renderer, ledger) if row.learned and not row.cut]
    if left := len(samples) - len(whole):
        report.log(
            f"{left} of {len(samples)} rows are not answered: they have more than {length} tokens, or no answer."
        )
    rows = [Row(row.row, *_asked(samples[row.row], tokenizer), row.input_ids, row.labels) for row in whole]
    limit = context_length(read_config(folder))
    rows = [row._replace(prompt=[]) if limit and len(row.prompt) + WRITTEN > limit else row for row in rows]
    return Rows(chosen.data, chosen.held_out, rows, tokenizer, stops) if rows else None


def _asked(sample: Sample, tokenizer: Any) -> tuple[str, str, list[int]]:
    """Return what a row asks and expects, for a person, and the tokens up to the answer, if it can be asked."""
    from backend.evaluate.answering import spoken
    from backend.models.chat_template import chat_text

    if not sample.messages:
        return "", sample.text or "", []
    *before, last = sample.messages
    question = next((turn.content for turn in reversed(before) if turn.role == "user"), "")
    expected = spoken(last.content)
    if last.role != "assistant" or not before or not expected:
        return question, expected or last.more, []
    turns = [{"role": turn.role, "content": turn.content, **turn.fields} for turn in before]
    try:
        text = chat_text(tokenizer, turns, json.loads(sample.tools) if sample.tools else None, prompt=True)
    except SpecError:  # it may take no conversation that ends with a question
        return question, expected, []
    return question, expected, tokenizer(text, add_special_tokens=False)["input_ids"]


def compare(
    work: Work, before: Mapping[ModelName, Path], results: Mapping[Path, ModelName], report: Report
) -> dict[Path, tuple[Compared, tuple[ComparedRow, ...]]]:
    """Have models answer rows, one model after the other; say of each result how its answers compare.

    Args:
        work: The step.
        before: What results are compared with: the base model, then the tuned one where there is one.
        results: Their folders, and what they are; one of them may be the tuned model.
        report: Receives the rows.

    Returns:
        By the folder of each result, the figures and the worst rows; nothing where there are no rows.

    Raises:
        SpecError: The rows leave a question open.
    """
    from backend.evaluate.answering import Said, answered, compared

    found = chosen(work, report)
    rows = rendered_rows(found, [*before.values()][-1], report) if found else None
    if rows is None:
        return {}
    folders = dict.fromkeys([*before.values(), *results])
    largest = max(max(row.ids) for row in rows.rows)
    if lacking := [folder.name for folder in folders if largest >= (embedded(read_config(folder)) or largest + 1)]:
        report.log(f"'{lacking[0]}' has no embedding for a token of the rows: answers to them are not compared.")
        return {}
    said: dict[Path, Said] = {folder: answered(folder, rows, report) for folder in folders}
    return {
        result: compared(rows, {name: said[folder] for name, folder in {**before, kind: result}.items()})
        for result, kind in results.items()
    }


def write_worst(folder: Path, result: str, worst: tuple[ComparedRow, ...]) -> None:
    """Keep the worst rows of a result in the folder of the step that measured it, which is never published."""
    write_whole(folder / _name(result), _SHOWN.dump_json(worst))


def read_worst(job: Path, result: str) -> tuple[ComparedRow, ...]:
    """Return the rows that a result of a job answers worst, newest evaluation first; none where none were compared.

    Args:
        job: Its folder.
        result: The name of the result's folder.
    """
    there = sorted(
        (job / "stages").glob(f"*-evaluate/{_name(result)}"), key=lambda path: -int(path.parent.name.split("-")[0])
    )
    return next((rows for path in there if (rows := read_whole(path, tuple[ComparedRow, ...]))), ())


def _name(result: str) -> str:
    return f"rows-of-{result}.json"
