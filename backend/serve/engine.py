"""The contract of an engine: how it starts, what it serves and costs, how it is installed, what a card says of it.

All that is known of one engine stands in its module in `engines/`, where ENGINES lists them. Each of them answers
OpenAI's API on a port of this machine, behind the guard.
"""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from backend.model_folder import CONFIG, PROCESSORS, settings_in, weights_bytes
from backend.models.config import quantization, reads_pictures
from backend.models.towers import tower_package
from backend.progress import Report

PLAIN = "16 bit"
"""What stands for the quantization method of weights that have none."""

HERE = "."
"""What stands for the model where its card lies in a folder and not in a repo."""


class Served(NamedTuple):
    """A model folder, as an engine looks at it before it is started."""

    folder: Path
    config: Mapping[str, Any]  # of an adapter: its base model's
    base: Path | None = None  # of an adapter: the folder of its base model

    @property
    def settings(self) -> Mapping[str, Any]:
        """How its weights are quantized; empty where they are not."""
        return quantization(self.config)

    @property
    def method(self) -> str:
        """The name of the quantization method, as config.json has it."""
        return str(self.settings.get("quant_method", PLAIN))


class Refusal(NamedTuple):
    """Why an engine does not serve a model."""

    reason: str  # a sentence without its full stop
    remedy: str = ""  # what to do, in the same way; without one, another engine is named

    @property
    def words(self) -> str:
        """Both, as one or two sentences."""
        between = ". " if self.remedy[:1].isupper() else ": "
        return f"{self.reason}{between}{self.remedy}."


class Shown(NamedTuple):
    """What a card says how to serve."""

    folder: Path  # where its texts lie
    model_id: str  # a repo id, or HERE
    config: Mapping[str, Any]  # empty of an adapter
    base_model: str | None = None  # of an adapter
    revision: str | None = None  # of the base model
    base_was_quantized: bool = False  # while the adapter was trained


class CardLines(NamedTuple):
    """How a card says that an engine serves a model."""

    link: str  # to the engine, in Markdown
    lines: str  # for a shell
    note: str = ""  # what differs there: the end of a sentence


class Install(NamedTuple):
    """How an engine is installed."""

    run: Callable[[Report, str | None], object]  # for this machine, or for one with a gpu or a cpu
    how: str  # at the command line: a sentence without its full stop
    cost: str  # what it takes


class Engine(NamedTuple):
    """What is known of one engine.

    Attributes:
        name: What flags and recipes call it.
        title: What people call it.
        merit: Why it is chosen by itself, with the method in place of `{}`.
        overhead: Bytes that its server takes beside the weights.
        start_seconds: Until a server of a small model is ready.
        obstacle: Returns why it cannot run on this machine, as a sentence; None where it can.
        is_installed: Returns whether it is there to be started.
        serves: Returns why it does not serve a model on any machine; None where it does.
        unserved: Returns why it serves no weights that are quantized as a config says, on any machine, from that config
            and the words for the model; None where it does.
        weights: Returns the bytes that the weights of a model take, from its folder.
        unpacks: Returns how it holds the weights of a model otherwise than its files do, in a few words; nothing where
            it does not.
        command: Returns the command, from the folder of a model, the port, the device, and of an adapter the folder of
            its base model. Its health is asked for at `/health`, all else is behind `backend.serve.guard`.
        environment: Returns what its process gets beside what every child does, from an empty folder for its sockets.
        remark: Returns what its log says of how it serves, in a sentence.
        install: How it is installed, where that is not a part of the app's own environment.
        card: Returns the lines with which a card says that it serves a model; None where it does not.
        beside: What requests call an adapter's base model, which answers beside it with log-probabilities; None: it
            does not.
    """

    name: str
    title: str
    merit: str
    overhead: int
    start_seconds: float
    serves: Callable[[Served], Refusal | None]
    command: Callable[[Path, int, str, Path | None], list[str]]
    unserved: Callable[[Mapping[str, Any], str], Refusal | None] = lambda config, name: None
    weights: Callable[[Path], int] = weights_bytes
    unpacks: Callable[[Mapping[str, Any]], str] = lambda config: ""
    obstacle: Callable[[], str | None] = lambda: None
    is_installed: Callable[[], bool] = lambda: True
    environment: Callable[[Path], dict[str, str]] = lambda sockets: {}
    remark: Callable[[str], str] = lambda log: ""
    install: Install | None = None
    card: Callable[[Shown], CardLines | None] = lambda shown: None
    beside: str | None = None


def sees(folder: Path, base: Path | None = None) -> bool:
    """Return whether a model takes pictures: it has a tower that is built here, and what prepares them lies beside it.

    Args:
        folder: Of the model, or of an adapter.
        base: Of an adapter: the folder of its base model.
    """
    config = settings_in(base or folder, CONFIG)
    places = [place for place in (folder, base) if place]
    prepared = any((place / name).is_file() for place in places for name in PROCESSORS)
    if not prepared or not reads_pictures(config) or not isinstance(config.get("vision_config"), dict):
        return False
    package = tower_package(config)
    return package is None or find_spec(package) is not None
