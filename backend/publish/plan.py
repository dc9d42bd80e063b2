"""Plan: all that is asked before something is published; the page, its panel and the command line ask it here."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from backend.artifacts.sealing import open_artifact
from backend.model_folder import weights_bytes
from backend.publish.adopt import describe, is_made_elsewhere
from backend.publish.card.base_card import read_base_card
from backend.publish.card.licenses import check_name
from backend.publish.destination import check_destination, check_outside
from backend.publish.options import PublishOptions


class Plan(NamedTuple):
    """What is published, and what is done with it before."""

    folder: Path
    options: PublishOptions
    base_model: str | None  # of a folder made elsewhere: the Hub id of what it was made from
    elsewhere: bool  # whether it is no artifact yet
    checked: bool  # whether it has passed its check already


def plan(
    going: Sequence[tuple[Path, PublishOptions]],
    token: str | None,
    tell: Callable[[str], None],
    base_model: str | None = None,
) -> list[Plan]:
    """Refuse what cannot be published, before anything long or lasting is done.

    Args:
        going: Folders with weights, each with where it goes; where there are several, into one namespace.
        token: Of who publishes; a local folder needs none.
        tell: Receives a word if a free account's storage may be too small for all of them.
        base_model: As look() takes it.

    Raises:
        SpecError, LoginError, HubError: As look() and check_destination() do.
    """
    found = [look(folder, options, base_model) for folder, options in going]
    to_come = sum(weights_bytes(folder) for folder, _ in going)
    for each in found:
        check_destination(each.options, token, to_come, tell)
        to_come = 0
    return found


def look(folder: Path, options: PublishOptions, base_model: str | None = None) -> Plan:
    """Return what is done with a folder with weights, as its own files say; the Hub is not asked.

    Args:
        folder: An artifact, or a folder made elsewhere.
        options: Where it goes.
        base_model: Of a folder made elsewhere, as describe() takes it.

    Raises:
        SpecError: The folder holds nothing that can be published, it is to go into itself, or a license asks another
            name of the repo.
    """
    if options.repo_id:
        check_name(options.repo_id, read_base_card(folder).licenses)
    if is_made_elsewhere(folder):
        describe(folder, base_model)
        check_outside(options, folder)
        return Plan(folder, options, base_model, elsewhere=True, checked=False)
    check = open_artifact(folder).check
    check_outside(options, folder)
    return Plan(folder, options, None, elsewhere=False, checked=check is not None and check.passed)
