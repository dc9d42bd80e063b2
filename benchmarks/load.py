"""How the app holds under load: many open pages, some chats and a job at once, on this machine alone.

`python -m benchmarks.load` writes benchmarks/results/load.json.

SESSIONS pages ask the app over HTTP what the page's own JavaScript asks, once a second each, CHATS of them let a model
answer, and a training takes what is left of the cores. The model is a stand-in that writes at a fixed pace, behind the
app's own door, so that what is lost is lost on the way: the same questions are asked first at that server itself, and
then through the page, while everything else goes on. Pages, app, job and model share the machine.

A tick lasts from the question whether anything is new until all that is new has been answered.
"""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from backend.artifacts.artifact import versions
from backend.jobs.store import Store
from backend.machine.hardware import hardware
from backend.models.demo import demo_folder
from backend.progress import silent
from backend.recipes import parse_recipe
from backend.serve.engines import ENGINES
from backend.serve.guard import Guard
from backend.settings import Settings, load_settings
from ui.visitor import LOCAL

SESSIONS, CHATS = 50, 5
TOKENS, PACE = 300, 30.0  # of an answer, and a second
SECONDS = 20.0  # that the pages are watched for at least
WATCHED, LEAST = ("jobs", "training"), 3.0  # what is shown anew, and seconds between two looks at a training
RESULTS = Path(__file__).parent / "results" / "load.json"

TRAINING = {
    "stage": "finetune", "dataset": "demo", "max_steps": 5000, "num_train_epochs": 500, "max_length": 128,
    "per_device_train_batch_size": 1,
}  # fmt: skip


def stand_in(folder: Path, port: int, device: str, base: Path | None) -> list[str]:
    """Return the command of a server that writes at a fixed pace."""
    return [sys.executable, "-m", "benchmarks.load", "stand-in", str(port)]


async def _write(request: Request) -> StreamingResponse:
    """Answer in TOKENS pieces, each at its moment whatever became of the one before."""

    async def pieces() -> AsyncIterator[str]:
        began = time.monotonic()
        for number in range(TOKENS):
            await asyncio.sleep(began + number / PACE - time.monotonic())
            delta = {"choices": [{"index": 0, "delta": {"content": f"word{number} "}, "finish_reason": None}]}
            yield f"data: {json.dumps(_CHUNK | delta)}\n\n"
        usage = {"prompt_tokens": 10, "completion_tokens": TOKENS, "total_tokens": TOKENS + 10}
        yield f"data: {json.dumps(_CHUNK | {'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"

    return StreamingResponse(pieces(), media_type="text/event-stream")


_CHUNK = {"id": "chat", "object": "chat.completion.chunk", "created": 0, "model": "stand-in"}


def serve_stand_in(port: int) -> None:
    """Serve it behind the door, as the engines are."""
    routes = [
        Route("/v1/chat/completions", _write, methods=["POST"]),
        Route("/health", lambda request: JSONResponse({})),
    ]
    uvicorn.run(Guard(Starlette(routes=routes)), host="127.0.0.1", port=port, log_level="warning")


def serve_app() -> None:
    """Run the app with the stand-in for every engine."""
    from app import serve  # noqa: PLC0415 - it sets what Gradio reads when it is imported

    for name in ("vllm", "transformers"):
        ENGINES[name] = ENGINES[name]._replace(command=stand_in, environment=lambda sockets: {})
    serve(load_settings().guarded().writable())


class Page:
    """One open page: a session of Gradio's, asked as the page's JavaScript asks.

    Args:
        config: What the page is made of.
        url: Where the app answers.
        cookies: Of the browser.
        session: Its name.
    """

    def __init__(self, config: dict[str, Any], url: str, cookies: httpx.Cookies, session: str) -> None:
        self._config, self.session = config, session
        self.http = httpx.AsyncClient(base_url=url, cookies=cookies, timeout=300, trust_env=False, verify=False)
        self._version, self._told, self._known = "", dict[str, str](), dict[str, tuple[str, float]]()
        self._ids = {c["props"].get("elem_id"): c["id"] for c in config["components"]}

    def event(self, elem_id: str, trigger: str) -> dict[str, Any]:
        """Find an event by what it is triggered by."""
        wanted = [self._ids[elem_id], trigger]
        return next(d for d in self._config["dependencies"] if wanted in [list(t) for t in d["targets"]])

    def event_with(self, elem_id: str, trigger: str) -> dict[str, Any]:
        """Find an event of something that has no name by a component that it changes."""
        found = [d for d in self._config["dependencies"] if any(t[1] == trigger for t in d["targets"])]
        return next(d for d in found if self._ids[elem_id] in d["outputs"])

    async def happen(self, event: dict[str, Any], given: dict[str, Any] | None = None) -> list[Any]:
        """Have an event happen, and give the messages that answer it.

        Args:
            event: Of the page.
            given: Values of components, by their names; all others have those that the page began with.
        """
        known = {c["id"]: c["props"] for c in self._config["components"]}
        values = {self._ids[name]: value for name, value in (given or {}).items()}
        data = [values.get(each, known[each].get("value")) for each in event["inputs"]]
        asked = {"fn_index": event["id"], "data": data, "event_data": None, "session_hash": self.session}
        asked["trigger_id"] = event["targets"][0][0]
        joined = await self.http.post("/gradio_api/queue/join", json=asked)
        joined.raise_for_status()
        wanted, said = joined.json()["event_id"], []
        where = {"session_hash": self.session}
        async with self.http.stream("GET", "/gradio_api/queue/data", params=where) as stream:
            async for line in stream.aiter_lines():
                message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                if message.get("event_id") == wanted:
                    said.append(message)
        if not said or not said[-1]["success"]:
            raise httpx.ReadError(f"the event failed: {said[-1:]}")
        return said

    async def live(self) -> None:
        """Keep the session alive."""
        with suppress(httpx.HTTPError):
            async with self.http.stream("GET", f"/gradio_api/heartbeat/{self.session}") as beats:
                async for _ in beats.aiter_lines():
                    pass

    async def tick(self) -> None:
        """Do what ui/changes.py has a page do once a second whose Jobs tab is looked at."""
        answer = await self.http.get("/changes", params={"since": self._version})
        answer.raise_for_status()
        if answer.status_code == 200:
            told = answer.json()
            self._version, self._told = told["version"], told["versions"]
        for what in WATCHED:
            version, at = self._known.get(what, ("", 0.0))
            rest = LEAST if what == "training" else 0.0
            if self._told.get(what, "") != version and time.monotonic() - at >= rest:
                self._known[what] = self._told.get(what, ""), time.monotonic()
                await self.happen(self.event(f"hear-{what}", "click"))


class Watch:
    """What the ticks of all pages took.

    Attributes:
        seconds: Of each.
        errors: What went wrong.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.errors: list[str] = []

    async def follow(self, page: Page, stop: asyncio.Event, delay: float) -> None:
        """Tick once a second; a tick that takes longer leaves out those that would begin meanwhile."""
        due = time.monotonic() + delay
        while not stop.is_set():
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            began = time.monotonic()
            try:
                await page.tick()
                self.seconds.append(time.monotonic() - began)
            except (httpx.HTTPError, ValueError) as e:
                self.errors.append(f"{type(e).__name__}: {e}"[:200])
            while due <= time.monotonic():
                due += 1.0

    def figures(self, seconds: float) -> dict[str, Any]:
        """Return what is told of them, after so many seconds."""
        ordered = sorted(self.seconds)
        return {
            "p50 of a tick, s": round(ordered[len(ordered) // 2], 3),
            "p95 of a tick, s": round(ordered[int(len(ordered) * 0.95)], 3),
            "ticks a second": round(len(ordered) / seconds, 1),
            "errors": len(self.errors),
            **({"first error": self.errors[0]} if self.errors else {}),
        }


async def ask_bare(url: str, key: str, model: str) -> None:
    """Ask the server itself, and read to the end."""
    headers = {"Authorization": f"Bearer {key}"}
    asked = {"model": model, "messages": [{"role": "user", "content": "Write."}], "stream": True}
    client = httpx.AsyncClient(timeout=300, trust_env=False, verify=False, headers=headers)
    async with client, client.stream("POST", f"{url}/chat/completions", json=asked) as answer:
        answer.raise_for_status()
        async for _ in answer.aiter_lines():
            pass


async def ask_page(page: Page, key: str) -> None:
    """Ask in the page, and read until the answer stands there."""
    given = {"chat-artifact": key, "chat-box": [], "chat-input": {"text": "Write.", "files": []}, "chat-system": ""}
    said = await page.happen(page.event("chat-send", "click"), given)
    if f"{TOKENS} tokens" not in json.dumps(said):
        raise httpx.ReadError("the answer is not whole")


async def load_model(page: Page, key: str) -> tuple[str, str, str]:
    """Load the model, and give where its server answers, the key to it, and its name."""
    await page.happen(page.event("chat-start", "click"), {"chat-artifact": key})
    while True:
        shown = json.dumps(await page.happen(page.event("chat-artifact", "input"), {"chat-artifact": key}))
        if found := re.search(r"curl (http://\S+/v1)/chat.*?Bearer ([\w-]+).*?model&quot;: &quot;(.*?)&quot;", shown):
            return found[1], found[2], found[3]
        await asyncio.sleep(0.5)


async def timed(*asked: Any) -> float:
    """Return the tokens a second of answers that are written at once."""
    began = time.monotonic()
    await asyncio.gather(*asked)
    return len(asked) * TOKENS / (time.monotonic() - began)


async def opened(address: str, job: str) -> tuple[list[Page], list[Page], tuple[str, str, str]]:
    """Open the pages as a browser does, and those that chat; give them, and the server of the model."""
    url, _, _ = address.partition("/?")
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=60) as browser:
        await browser.get(address)
        found = re.search(r"window\.gradio_config = (\{.*?\});</script>", (await browser.get(f"{url}/")).text, re.S)
        assert found
        config, cookies = json.loads(found[1]), browser.cookies
    pages, chats = ([Page(config, url, cookies, f"{kind}{n:05d}") for n in range(count)]
                    for kind, count in (("page", SESSIONS), ("chat", CHATS)))  # fmt: skip
    for page in pages:
        await page.happen(page.event_with("job-view", "load"))
    for chat in chats:
        await chat.happen(chat.event_with("chat-artifact", "select"))
    return pages, chats, await load_model(chats[0], f"{job}/base")


async def watched(pages: list[Page], *asked: Any) -> tuple[Watch, float, float]:
    """Look at the pages while answers are written; give what the ticks took, seconds, and tokens a second."""
    watch, stop, began = Watch(), asyncio.Event(), time.monotonic()
    ticking = [asyncio.create_task(watch.follow(page, stop, n / len(pages))) for n, page in enumerate(pages)]
    speed = await timed(*asked)
    await asyncio.sleep(max(0.0, SECONDS - (time.monotonic() - began)))
    stop.set()
    await asyncio.gather(*ticking)
    return watch, time.monotonic() - began, speed


async def measure(address: str, job: str, pid: int) -> dict[str, Any]:
    """Open the pages, ask the chats, and give the figures."""
    pages, chats, server = await opened(address, job)
    living = [asyncio.create_task(page.live()) for page in (*pages, *chats)]
    _, _, bare = await watched(pages, *(ask_bare(*server) for _ in chats))
    before = resident(pid)
    watch, seconds, ours = await watched(pages, *(ask_page(chat, f"{job}/base") for chat in chats))
    after = resident(pid)
    for task in living:
        task.cancel()
    return {
        **watch.figures(seconds),
        "tokens a second, bare": round(bare, 1),
        "tokens a second, ours": round(ours, 1),
        "ours / bare": round(ours / bare, 3),
        "MiB more after this": round((after - before) / 2**20, 1),
        "MiB": round(after / 2**20, 1),
    }


def resident(pid: int) -> int:
    """Return the bytes of a process that lie in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Measure, print and write."""
    with tempfile.TemporaryDirectory() as folder:
        job = furnish(Path(folder))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        env = os.environ | {"WEIGHTSMITH_DATA": folder, "WEIGHTSMITH_PORT": str(port)}
        command = [sys.executable, "-m", "benchmarks.load", "app"]
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as app:
            try:
                assert app.stdout
                address, events = app.stdout.readline().split()[-1], Path(folder) / "jobs" / job / "events.jsonl"
                while not events.is_file() or "metrics" not in events.read_text(encoding="utf-8"):
                    time.sleep(1)
                found = asyncio.run(measure(address, job, app.pid))
            finally:
                app.terminate()
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": hardware(),
        "versions": versions(("gradio", "fastapi", "uvicorn", "openai", "httpx")),
        "sessions": SESSIONS,
        "chats": CHATS,
        "tokens of an answer": TOKENS,
        "tokens a second of the stand-in": PACE,
        **found,
    }
    RESULTS.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(RESULTS.read_text(encoding="utf-8"))


def furnish(data: Path) -> str:
    """Make a data folder with the model and a training that waits, and give the training's id."""
    demo_folder(data, silent())
    Settings(data=data).writable()
    with closing(Store(data / "jobs.sqlite")) as store:
        return store.add(parse_recipe({"base_model": "demo", "stages": [TRAINING]}), LOCAL)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["stand-in", port]:
            serve_stand_in(int(port))
        case ["app"]:
            serve_app()
        case _:
            main()
