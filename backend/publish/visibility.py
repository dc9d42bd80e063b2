"""Access: who sees a published repo, who must ask for it, and the collection it lies in; set after its commit."""

import re
from collections.abc import Callable
from typing import Literal

from huggingface_hub import HfApi

from backend.publish.options import PublishOptions

_SLUG = re.compile(r"[\w.-]+/[\w.-]+-[0-9a-f]{24}", re.ASCII)


def steps(options: PublishOptions, api: HfApi, private: bool) -> dict[str, Callable[[], None]]:
    """Return what is still to be set of a repo that holds what it is to hold, each by what it is called.

    Each can be done again where it was done before.

    Args:
        options: What was asked for.
        api: The Hub's client of whom publishes.
        private: Whether the repo is private now.
    """
    repo_id, found = options.repo_id, dict[str, Callable[[], None]]()
    assert repo_id
    visible = options.private if options.private is not None and options.private != private else None
    if visible is not None or options.gated:
        asked = {"its visibility": visible is not None, "its gate": options.gated}
        what = " and ".join(name for name, wanted in asked.items() if wanted)
        # in one request, so that nobody finds it open before it is gated
        found[what] = lambda: _set(repo_id, visible, options.gated, api)
    if title := options.collection:
        closed = private if visible is None else visible
        found[f"the collection '{title}'"] = lambda: _put_into(title, repo_id, api, closed)
    return found


def _set(repo_id: str, private: bool | None, gated: Literal["auto", "manual"] | None, api: HfApi) -> None:
    """Set visibility and gate, and look: of the reply the library reads the status alone."""
    api.update_repo_settings(repo_id, private=private, gated=gated)
    info = api.model_info(repo_id)
    if (private is not None and info.private is not private) or (gated and info.gated != gated):
        raise ValueError("The Hub holds other settings than were asked for.")


def _put_into(collection: str, repo_id: str, api: HfApi, private: bool) -> None:
    """Put a repo into a collection, given by slug or title; one that is not there is made."""
    slug = collection if _SLUG.fullmatch(collection) else _slug(collection, repo_id.split("/")[0], api, private)
    api.add_collection_item(slug, repo_id, "model", exists_ok=True)


def _slug(title: str, namespace: str, api: HfApi, private: bool) -> str:
    for known in api.list_collections(owner=namespace):
        if known.title == title:
            return known.slug
    return api.create_collection(title, namespace=namespace, private=private, exists_ok=True).slug
