"""What a loopback Hub knows of Spaces: hardware and its prices, settings, and buckets.

`hub.repos["spaces", "me/studio"].settings` holds `sdk`, `hardware`, `sleepTimeSeconds`, `secrets`, `variables` (name to
value) and `volumes`, as the client set them.
"""

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tests.support.hub_repos import GITATTRIBUTES, Blob
from tests.support.hub_routes import Denied, Reply, _repo, _writer, said
from tests.support.hub_routes import create as create_repo
from tests.support.hub_routes import info as repo_info

if TYPE_CHECKING:
    from tests.support.hub_routes import Route
    from tests.support.loopback_hub import LoopbackHub, Request

PRICES = {"cpu-basic": 0.0, "cpu-upgrade": 0.03, "t4-small": 0.4, "l4x1": 0.8}  # dollars an hour
README = b"---\ntitle: Studio\nsdk: gradio\n---\n\nCheck out the configuration reference\n"


def hardware(hub: "LoopbackHub", request: "Request", at: Mapping[str, str]) -> Reply:
    return said(
        [
            {
                "name": name,
                "prettyName": name,
                "cpu": "2 vCPU",
                "ram": "16 GB",
                "accelerator": None,
                "unitCostMicroUSD": round(price / 60 * 1e6),
                "unitCostUSD": price / 60,
                "unitLabel": "minute",
            }
            for name, price in PRICES.items()
        ]
    )


def create(hub: "LoopbackHub", request: "Request", at: Mapping[str, str]) -> Reply:
    """Make a repo; a Space is given a README of the Hub's own and what it is to be set to."""
    reply, asked = create_repo(hub, request, at), json.loads(request.body)
    if asked.get("type") == "space" and reply.status == 200:
        repo = hub.repos["spaces", json.loads(reply.body)["name"]]
        repo.commits.clear()
        repo.commit({".gitattributes": Blob(GITATTRIBUTES, False), "README.md": Blob(README, False)}, "initial commit")
        named = {key: {i["key"]: i["value"] for i in asked.get(key, [])} for key in ("secrets", "variables")}
        plain = {key: asked.get(key) for key in ("sdk", "hardware", "sleepTimeSeconds")}
        repo.settings = {**plain, "volumes": asked.get("volumes", []), **named}
    return reply


def info(hub: "LoopbackHub", request: "Request", at: Mapping[str, str]) -> Reply:
    data = json.loads(repo_info(hub, request, {**at, "kind": "spaces"}).body)
    settings = _repo(hub, request, {**at, "kind": "spaces"}).settings
    return said({**data, "sdk": data["cardData"].get("sdk"), "runtime": _runtime(settings)})


def change(hub: "LoopbackHub", request: "Request", at: Mapping[str, str]) -> Reply:
    """Change one kind of setting."""
    repo = _repo(hub, request, {**at, "kind": "spaces"})
    _writer(hub, request, repo.id.partition("/")[0])
    asked, settings = json.loads(request.body), repo.settings
    if at["what"] in ("secrets", "variables"):
        settings[at["what"]][asked["key"]] = asked["value"]
        return said({k: {"value": v} for k, v in settings["variables"].items()})
    if at["what"] == "volumes":
        settings["volumes"] = asked["volumes"]
    elif at["what"] == "hardware":
        settings["hardware"] = asked["flavor"]
        settings["sleepTimeSeconds"] = asked.get("sleepTimeSeconds", settings["sleepTimeSeconds"])
    else:
        settings["sleepTimeSeconds"] = asked["seconds"]
    return said(_runtime(settings))


def _runtime(settings: Mapping[str, Any]) -> dict[str, Any]:
    flavor = settings.get("hardware") or "cpu-basic"
    return {
        "stage": "RUNNING",
        "hardware": {"current": flavor, "requested": flavor},
        "gcTimeout": settings.get("sleepTimeSeconds"),
        "volumes": settings.get("volumes") or [],
    }


def make_bucket(hub: "LoopbackHub", request: "Request", at: Mapping[str, str]) -> Reply:
    namespace, name = at["bucket"].split("/")
    _writer(hub, request, namespace)
    if ("buckets", at["bucket"]) in hub.objects:
        raise Denied(409, "You already created this bucket")
    private = json.loads(request.body).get("visibility") == "private"
    hub.objects["buckets", at["bucket"]] = b"private" if private else b"public"  # type: ignore[index]
    return said({"url": f"{hub.url}/buckets/{namespace}/{name}"})


_SPACE = r"/api/spaces/(?P<repo>[^/]+/[^/]+)"

ROUTES: "list[tuple[tuple[str, ...], re.Pattern[str], Route]]" = [
    (methods, re.compile(pattern), route)
    for methods, pattern, route in (
        (("GET",), r"/api/spaces/hardware", hardware),
        (("POST",), r"/api/repos/create", create),
        (("GET",), _SPACE, info),
        (("POST", "PUT"), rf"{_SPACE}/(?P<what>secrets|variables|volumes|hardware|sleeptime)", change),
        (("POST",), r"/api/buckets/(?P<bucket>[^/]+/[^/]+)", make_bucket),
    )
]
