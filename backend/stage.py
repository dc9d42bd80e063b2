"""Stage: what every stage's option model says of itself: what it makes, what it needs, which files it names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from backend.hub.ids import DEMO, is_local
from backend.options import Frozen, first_field


class Stage(Frozen):
    """The base of the option models that a recipe is made of; what the stage does is a module of backend.stages."""

    stage: str
    makes: ClassVar[str | None] = None
    """The kind of artifact that it makes: adapter, merged or quantized; None: it looks at what was made before."""

    whole: ClassVar[bool] = True
    """Whether it works on a whole model only, which an adapter alone is not."""

    gpu: ClassVar[bool] = False
    """Whether it computes on the GPU, where there is one."""

    streams: ClassVar[bool] = False
    """Whether it reads every tensor once, in the order of the files, so that a model need not lie here whole."""

    NAMES: ClassVar[tuple[str, ...]] = ()
    """Fields that may name a file or a folder of this machine, by its absolute path, beside what they else name."""

    def check(self, facts: Any) -> None:
        """Refuse what does not fit a model, before anything is downloaded; a stage says what that is, if anything.

        Args:
            facts: ModelFacts of the base model.
        """

    def files(self) -> dict[str, Path]:
        """Return the files and folders of this machine that it names, by field: `text`, `adapters[0]`."""
        return {field: Path(name) for field, name in self._named().items() if is_local(name)}

    def with_files(self, files: Mapping[str, Path | str]) -> Self:
        """Return the stage with other names of its files, by field as files() has them; others stay."""
        named = {field: str(files.get(field, name)) for field, name in self._named().items()}
        changes: dict[str, str | tuple[str, ...] | Frozen] = {}
        for field in {name.split("[")[0] for name in files}:
            if isinstance(names := getattr(self, field), tuple):
                changes[field] = tuple(named[f"{field}[{i}]"] for i in range(len(names)))
            elif isinstance(names, Frozen):
                changes[field] = names.model_copy(update={first_field(type(names)): named[field]})
            else:
                changes[field] = named[field]
        return self.model_copy(update=changes)

    def on_hub(self) -> list[str]:
        """Return what it names that must be fetched from the Hub."""
        here = self.files()
        return [name for field, name in self._named().items() if field not in here and name != DEMO]

    def _named(self) -> dict[str, str]:
        """Return what the fields name, whatever it is."""
        found: dict[str, str] = {}
        for field in self.NAMES:
            names = getattr(self, field)
            if isinstance(names, tuple):
                found |= {f"{field}[{i}]": name for i, name in enumerate(names)}
            elif isinstance(names, Frozen):
                found[field] = getattr(names, first_field(type(names)))
            elif names:
                found[field] = names
        return found
