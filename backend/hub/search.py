"""Search the Hub for models that the studio can work on."""

from concurrent.futures import ThreadPoolExecutor
from itertools import chain

from pydantic import Field

from backend.hub import client
from backend.options import Frozen

TASKS = ("text-generation", "image-text-to-text")
"""What the Hub calls the tasks of models that write text, of text alone and of pictures too."""


class Hit(Frozen):
    """One model that was found."""

    id: str
    downloads: int = Field(description="In the last 30 days.")
    likes: int
    gated: bool
    updated: str | None = Field(description="Day of the last commit, ISO 8601.")


def search(query: str, limit: int = 20, token: str | None = None) -> list[Hit]:
    """Find language models, those that read pictures too among them, the most downloaded first.

    Args:
        query: A part of the id; empty finds the most downloaded of all.
        limit: Hits at most.
        token: The caller's Hub token; private models are found with it.

    Raises:
        HubError: The Hub refused or could not be reached.
    """
    with ThreadPoolExecutor(len(TASKS)) as pool:
        found = chain.from_iterable(pool.map(lambda task: _listed(task, query, limit, token), TASKS))
    return sorted(found, key=lambda hit: hit.downloads, reverse=True)[:limit]


def _listed(task: str, query: str, limit: int, token: str | None) -> list[Hit]:
    """Return the most downloaded models of a task; the Hub lists one at a time."""
    found = client.ask(
        lambda: list(
            client.api(token).list_models(
                search=query.strip()[:96] or None,
                pipeline_tag=task,
                filter="transformers",
                sort="downloads",
                limit=limit,
                expand=["downloads", "likes", "gated", "lastModified"],
            )
        ),
        "the search",
        token,
    )
    return [
        Hit(
            id=info.id,
            downloads=info.downloads or 0,
            likes=info.likes or 0,
            gated=bool(info.gated),
            updated=info.last_modified.date().isoformat() if info.last_modified else None,
        )
        for info in found
    ]
