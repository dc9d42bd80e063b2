"""What lies beside the weights of a result, described once: a stage writes it, the estimate measures it.

Tokenizer, templates and licenses are the base model's; recipe and the base's card are made here.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from backend.artifacts.artifact import BASE_CARD, MANIFEST, Artifact, Training, now, versions
from backend.artifacts.sealing import open_artifact
from backend.hub.files import LocalFiles
from backend.hub.front_matter import read_card
from backend.hub.ids import DEMO, is_local
from backend.machine.hardware import hardware, peak_memory_bytes
from backend.merge.merging import record
from backend.model_folder import Kind, has_tokenizer, is_license, kind_of, set_template, template_in, weights_bytes
from backend.models.admission import is_taken
from backend.models.config import as_kept, is_settings
from backend.models.demo import demo_artifact
from backend.models.facts import ModelFacts
from backend.models.fetch import downloaded
from backend.models.known_tokens import known_tokens
from backend.progress import Report
from backend.publish.card.base_card import base_card
from backend.recipes import Recipe
from backend.strict_json import quoted
from backend.weights.plan import Plan

NAMED = 5
"""Tokens that a warning names at most."""


class Base(NamedTuple):
    """What a result is made from."""

    folder: Path  # whose name its recipe gives, where the Hub has none for it
    origin: Artifact  # what is known of where it came from
    files: Mapping[str, int]  # bytes of what is taken of it
    card: Mapping[str, Any]  # the front matter of its card
    weights_bytes: int
    adapters: tuple["Base", ...] = ()  # what was merged into it, from folders
    rows: int | None = None  # tokens for which the result has embeddings, once that is known

    def copied(self) -> dict[str, "Base"]:
        """Say which files go into the result as they are, and which of these models each is of.

        Saving a tokenizer again through a library can change it. It comes whole from here, or from the first adapter
        with one where that has other tokens; a chat template from the first adapter that has another.
        """
        spoken, told = self._tokenizer(), self._template()
        licenses = [name for name in self.files if is_license(name, self.files[name])]
        taken = dict.fromkeys([*self._of("generation", "processor", "notes"), *licenses], self)
        for adapter in reversed(self.adapters):
            taken |= dict.fromkeys(adapter._of("generation"), adapter)
        taken |= dict.fromkeys(spoken._of("vocabulary", "tokenizer"), spoken)
        return taken | dict.fromkeys(told._of("template"), told)

    def copy(self, output: Path) -> list[str]:
        """Put the files that go into the result as they are into its folder, and name them."""
        copied, told = self.copied(), self._template()
        for name, source in copied.items():
            (output / name).parent.mkdir(exist_ok=True)
            if is_settings(name):
                (output / name).write_bytes(as_kept(name, (source.folder / name).read_bytes()))
            else:
                shutil.copyfile(source.folder / name, output / name)
        text = template_in(told.folder)
        if text is not None and template_in(output) != text:  # it stands among the settings of a tokenizer
            set_template(output, text)
        return list(copied)

    def lost(self) -> dict[str, int]:
        """Return the tokens of the adapters' tokenizers for which the result has no embeddings, with their numbers."""
        rows = self.rows
        found = [known_tokens(adapter.folder) for adapter in self.adapters if rows and has_tokenizer(adapter.files)]
        return {text: number for tokens in found for text, number in tokens.beyond(rows or 0).items()}

    def _tokenizer(self) -> "Base":
        adapter = next((adapter for adapter in self.adapters if has_tokenizer(adapter.files)), None)
        if adapter is None or not has_tokenizer(self.files):
            return adapter or self
        tokens = known_tokens(adapter.folder)
        fits = self.rows is None or not tokens.beyond(self.rows)
        return adapter if fits and tokens.differs_from(known_tokens(self.folder)) else self

    def _template(self) -> "Base":
        if not self.adapters:
            return self
        known = template_in(self.folder)
        return next((a for a in self.adapters if template_in(a.folder) not in (None, known)), self)

    def _of(self, *kinds: Kind) -> list[str]:
        return [name for name in self.files if kind_of(name) in kinds]

    def texts(self, recipe: Recipe) -> dict[str, bytes]:
        """Return the files that are written for the result.

        Args:
            recipe: What is done, with the commit of its base model.
        """
        public = recipe.public(self.origin.base_model or self.folder.name)
        return {BASE_CARD: base_card(self.card, self.weights_bytes), "recipe.yaml": public.to_yaml().encode()}

    def record(self, recipe: Recipe, options: Any) -> Artifact:
        """Return what is to be remembered of the result of a recipe's stage, but for what only the run can tell."""
        merging, merged = recipe.merging, self.origin.merged
        if merging and self.adapters:
            merged = record([adapter.folder for adapter in self.adapters], merging)
        public = recipe.public(self.origin.base_model or self.folder.name)
        return Artifact(
            kind="merged" if options is merging else "quantized",
            stage=options.stage,
            base_model=self.origin.base_model,
            revision=self.origin.revision,
            origin=self.origin.origin,
            merged=merged,
            training=self._training(),
            layouts=recipe.together(options) or None,
            options=public.stages[recipe.stages.index(options)].model_dump(mode="json", exclude_none=True),
            versions=versions(),
            created=now(),
        )

    def _training(self) -> Training | None:
        """Return how the adapter that is in the result had been trained; of several, no training alone says it."""
        sources = self.adapters or (self,)
        return sources[0].origin.training if len(sources) == 1 else None


def base_in(folder: Path) -> Base:
    """Describe the base model in a folder; one of the user's own is known by nothing but its name."""
    known = (folder / MANIFEST).is_file()
    origin = open_artifact(folder) if known else Artifact(kind="model", stage="fetch", created=now())
    there = LocalFiles(folder)
    texts = {entry.name: entry.size for entry in there.entries() if is_taken(there, entry)}
    texts |= {name: len(as_kept(name, (folder / name).read_bytes())) for name in texts if is_settings(name)}
    return Base(folder, origin, texts, read_card(there), weights_bytes(folder))


def base_of(facts: ModelFacts) -> Base:
    """Describe a base model as it will lie here."""
    if is_local(facts.model):
        here = base_in(Path(facts.model))
        return here._replace(files=facts.files, weights_bytes=facts.size) if facts.pickled else here
    origin = demo_artifact() if facts.model == DEMO else downloaded(facts.model, facts.commit)
    origin = origin.model_copy(update={"stage": "convert"}) if facts.pickled else origin
    return Base(Path(facts.model), origin, facts.files, facts.card, facts.size)


def accompany(recipe: Recipe, base: Base, output: Path) -> list[str]:
    """Put beside a result's weights what is known from its base model and its recipe, and name what was copied.

    Args:
        recipe: What is done.
        base: What it is done to.
        output: Of the result.
    """
    copied = base.copy(output)
    for name, content in base.texts(recipe).items():
        (output / name).write_bytes(content)
    return copied


def complete(recipe: Recipe, options: Any, base: Base, plan: Plan, output: Path, report: Report) -> Artifact:
    """Add to weights that are written what belongs beside them, and give what is to be recorded.

    Args:
        recipe: What is done.
        options: Of the stage that wrote them.
        base: What they were made from.
        plan: What became of which tensor.
        output: Their folder.
        report: Its warnings stay with the artifact.
    """
    if not has_tokenizer(accompany(recipe, base, output)):
        report.warn("The model came without a tokenizer: it can be neither measured nor chatted with.")
    if lost := base.lost():
        names = ", ".join(f"{quoted(text)} (token {number})" for text, number in list(lost.items())[:NAMED])
        report.warn(
            f"The adapter's tokenizer has {names}, and the model has {base.rows} embeddings: it cannot read such a"
            " token. The base model's tokenizer stays."
        )
    measured = {
        "hardware": hardware(),
        "peak_memory_bytes": peak_memory_bytes(),
        "warnings": tuple(dict.fromkeys(report.warnings)),
    }
    measured["quantized_share"] = plan.share
    return base.record(recipe, options).model_copy(update=measured)
