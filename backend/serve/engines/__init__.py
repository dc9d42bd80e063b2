"""The engines that serve a model, one module each; of those that serve a folder here, the first is chosen."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from backend.errors import HardwareError, SpecError
from backend.hub.transfer import size_words
from backend.model_folder import ADAPTER, CONFIG, is_adapter, settings_in
from backend.serve.engine import Engine, Refusal, Served
from backend.serve.engines import transformers, vllm

ENGINES: dict[str, Engine] = {
    "vllm": vllm.ENGINE,
    "transformers": transformers.ENGINE,
}
"""In the order in which they are preferred."""

AUTO = "auto"

if TYPE_CHECKING:
    EngineName = str
else:
    EngineName = Literal[AUTO, *ENGINES]


def choose(folder: Path, wanted: EngineName = AUTO, base: Path | None = None) -> tuple[str, str]:
    """Choose the engine for a folder.

    Args:
        folder: A model folder with config.json, or an adapter.
        wanted: AUTO, or a key of ENGINES.
        base: Of an adapter, the folder of its base model.

    Returns:
        The engine's name, and the reason in a few words.

    Raises:
        SpecError: It is not a model folder.
        HardwareError: No engine can serve it on this machine, or not the one that is wanted.
    """
    served = _served(folder, base)
    refusals = {name: _refusal(engine, served) for name, engine in ENGINES.items()}
    able = [name for name, refusal in refusals.items() if refusal is None]
    if wanted in able or (wanted == AUTO and able):
        name = able[0] if wanted == AUTO else wanted
        why = ENGINES[name].merit.format(served.method) if wanted == AUTO else "chosen"
        return name, why + _held(ENGINES[name], served)
    raise HardwareError(_words([refusal for refusal in (refusals.get(wanted), *refusals.values()) if refusal], able))


def expected(wanted: EngineName = AUTO) -> Engine:
    """Return the engine that will serve what is not made yet: the first that is installed, unless one is named."""
    if wanted != AUTO:
        return ENGINES[wanted]
    return next(engine for engine in ENGINES.values() if engine.is_installed())


def installable(folder: Path) -> Engine | None:
    """Return the engine that would serve a folder here if it were installed, where none serves it without that."""
    if not (folder / CONFIG).is_file():
        return None
    served = _served(folder, None)
    if any(_refusal(engine, served) is None for engine in ENGINES.values()):
        return None
    missing = [engine for engine in ENGINES.values() if engine.install and not engine.is_installed()]
    return next((engine for engine in missing if not (engine.serves(served) or engine.obstacle())), None)


def _served(folder: Path, base: Path | None) -> Served:
    if is_adapter(folder) and base is None:
        raise SpecError(f"'{folder.name}' is an adapter: name the model that it was trained on, or merge it first.")
    if is_adapter(folder) and not (folder / ADAPTER).is_file():
        raise SpecError(f"'{folder.name}' has no {ADAPTER}: pickled adapters are not loaded.")
    if not ((base or folder) / CONFIG).is_file():
        raise SpecError(f"'{folder.name}' has no readable {CONFIG}: give the folder of a model.")
    config = settings_in(base or folder, CONFIG)
    if not isinstance(config.get("quantization_config") or {}, dict):
        raise SpecError(f"The quantization_config of '{folder.name}' is damaged: make the model again.")
    return Served(folder, config, base)


def _held(engine: Engine, served: Served) -> str:
    """Say what an engine does with weights that it does not hold as they lie, and what that takes."""
    how = engine.unpacks(served.config)
    return f", {how}: {size_words(engine.weights(served.base or served.folder))}" if how else ""


def _refusal(engine: Engine, served: Served) -> Refusal | None:
    """Return why an engine cannot serve a model on this machine; None where it can."""
    held = f"'{served.folder.name}' holds {served.method} weights"
    if refusal := engine.serves(served):
        return refusal
    if obstacle := engine.obstacle():
        return Refusal(f"{held}. {obstacle.rstrip('.')}", "Serve the folder on a machine that has one")
    if not engine.is_installed():
        return Refusal(f"{held}, which {engine.title} serves", engine.install.how if engine.install else "")
    return None


def _words(refusals: list[Refusal], able: list[str]) -> str:
    """Say why no engine is chosen.

    Args:
        refusals: Of the engine that is wanted, and then of all, in the order of ENGINES.
        able: The engines that serve the model.
    """
    first = refusals[0]
    if able and not first.remedy:
        return Refusal(first.reason, f"choose {able[0]}").words
    told = next((refusal for refusal in refusals if refusal.remedy), None)
    return told.words if told else " ".join(f"{refusal.reason}." for refusal in dict.fromkeys(refusals))
