"""Licenses: which ids the Hub knows, and what some of them ask of whoever passes on what was made from a model.

The ids are those of the Hub's documentation (hub-docs, repositories-licenses.md). What is asked stands in clause 1.b of
the Llama community licenses and in section 3.1 of the Gemma Terms of Use.
"""

from collections.abc import Iterable
from typing import NamedTuple

from backend.errors import SpecError

_IDS = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
    other
"""

IDS = frozenset(_IDS.split())
"""What `license` may say in a card's front matter; the Hub refuses a commit with anything else."""


class Terms(NamedTuple):
    """What a license asks of a repo with something that was made from its model."""

    notice: str  # that a file NOTICE must hold
    built_with: str | None = None  # to be shown prominently
    prefix: str | None = None  # that the name must begin with


def _llama(version: str) -> Terms:
    name = f"Llama {version}"
    notice = (
        f"{name} is licensed under the {name} Community License, Copyright © Meta Platforms, Inc. All Rights Reserved."
    )
    return Terms(notice, "Built with Llama", "Llama")


TERMS = {
    "llama2": Terms(
        "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. All Rights"
        " Reserved."
    ),
    "llama3": Terms(
        "Meta Llama 3 is licensed under the Meta Llama 3 Community License, Copyright © Meta Platforms, Inc. All Rights"
        " Reserved.",
        "Built with Meta Llama 3",
        "Llama-3",  # the license says "Llama 3"; no repo id has a space
    ),
    **{f"llama{version}": _llama(version) for version in ("3.1", "3.2", "3.3", "4")},
    "gemma": Terms(
        "Gemma is provided under and subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms"
    ),
}
"""A license's id → what it asks."""


def terms(licenses: Iterable[str]) -> list[Terms]:
    """Return what these licenses ask, of ids that ask nothing here nothing."""
    return [TERMS[license] for license in licenses if license in TERMS]


def check_name(repo_id: str, licenses: Iterable[str]) -> None:
    """Refuse a repo's name that does not begin as a license asks.

    Args:
        repo_id: Where something goes that was made from a model under these licenses.
        licenses: Ids as a card has them.

    Raises:
        SpecError: What the name must begin with, and one that does.
    """
    namespace, slash, name = repo_id.rpartition("/")
    for license in licenses:
        better = fitting(name, [license])
        if better != name:
            raise SpecError(
                f"Could not publish to '{repo_id}'. The base model's license, {license}, wants a name that begins with"
                f" '{TERMS[license].prefix}': choose '{namespace}{slash}{better}'."
            )


def fitting(name: str, licenses: Iterable[str]) -> str:
    """Return a repo's name that begins as licenses ask: the name itself, if it does."""
    for asked in terms(licenses):
        if asked.prefix and not name.lower().startswith(asked.prefix.lower()):
            name = f"{asked.prefix}-{name}"
    return name
