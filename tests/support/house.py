"""A studio behind its doors, with things of Anna's in it, and those who come to look."""

import contextlib
import hashlib
import inspect
import json
import secrets
import socket
import threading
from dataclasses import dataclass
from types import SimpleNamespace

import gradio as gr
import gradio.oauth
import httpx
import pytest

import app as entry
from backend.artifacts.artifact import Artifact, now
from backend.artifacts.sealing import partial, seal
from backend.jobs.store import JobState, Store
from backend.jobs.supervisor import Supervisor
from backend.recipes import parse_recipe
from backend.serve.servers import Servers
from backend.settings import Settings
from backend.spec import Preview
from tests.support.openid import OpenId
from ui.access.connections import server
from ui.access.launch import Launch
from ui.studio import Studio

CANARY = "canary-of-anna"
SPACE_HOST = "anna-studio.hf.space"
TOKENS = {user: f"hf_{user}" + "0" * 30 for user in ("anna", "ben", "carl")}
NF4 = {"stage": "quantize", "method": "nf4"}


@dataclass
class House:
    """The app, answering at `url` to who names it `host`.

    Attributes:
        owner: Anna's id.
        done: A job of hers that has made something.
        queued: One that waits.
        failed: One that ended early.
        preview: A look at rows of hers.
        file: Where her upload lies.
        lasting: A session of hers.
    """

    studio: Studio
    app: object
    launch: Launch | None
    url: str
    host: str
    owner: str
    done: str
    queued: str
    failed: str
    preview: str = ""
    file: str = ""
    lasting: str = "annas0session"

    @property
    def page(self):
        return self.gradio.get_blocks()

    @property
    def gradio(self):
        return self.app.routes[-1].app

    @property
    def key(self):
        """What the browser knows her result by."""
        return f"{self.done}/1-quantize"

    def state_of_anna(self):
        """Everything of hers that somebody could change."""
        jobs = [(job.id, job.state, job.attempt, job.error) for job in self.studio.supervisor.list(self.owner)]
        files = [path for path in sorted(self.studio.settings.jobs.rglob("*")) if path.is_file()]
        kept = [path for path in files if path.relative_to(self.studio.settings.jobs).parts[0] in self.ids]
        preview = self.studio.supervisor.get(self.preview, self.owner).state
        return jobs, [(str(path), hashlib.sha256(path.read_bytes()).hexdigest()) for path in kept], preview

    @property
    def ids(self):
        return {self.done, self.queued, self.failed, self.preview}


class Visitor:
    """Somebody with a browser; there is no TLS to verify, and reading the roots takes a moment."""

    def __init__(self, house, cookie="", **headers):
        self.house, self.session = house, secrets.token_hex(5)
        given = {"Host": house.host, "Cookie": cookie, **headers}
        self.http = httpx.Client(base_url=house.url, headers=given, timeout=20, verify=False)

    def ask(self, method, path, **what):
        """Return the status of an answer and the beginning of its body, which may never end."""
        with self.http.stream(method, path, **what) as reply:
            body = next(reply.iter_bytes(), b"") if "event-stream" in reply.headers.get("content-type", "") else b""
            return reply.status_code, body or reply.read()

    def upload(self, name, content, upload_id=None):
        """Upload a file and give where it lies."""
        upload = {"upload_id": upload_id or self.session}
        reply = self.http.post("/gradio_api/upload", params=upload, files={"files": (name, content)})
        assert reply.status_code == 200, reply.text
        return reply.json()[0]

    def press(self, fn, data):
        """Have an event of the page happen and give everything that is answered."""
        asked = {"fn_index": fn._id, "data": data, "session_hash": self.session, "event_data": None}
        joined = self.http.post("/gradio_api/queue/join", json=asked)
        said = [joined.text]
        if joined.status_code == 200:
            with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
                for line in stream.iter_lines():
                    said.append(line)
                    if '"process_completed"' in line:
                        break
        return "\n".join(said)


@contextlib.contextmanager
def furnished(data, host, owner, **settings):
    """Open a house; nobody runs its jobs, so that what waits goes on waiting."""
    settings = Settings(data=data, max_upload_bytes=1_000_000, **settings).guarded()
    settings.writable()
    store = Store(data / "jobs.sqlite")
    spec = parse_recipe({"base_model": f"anna/{CANARY}", "stages": [NF4]})
    done, queued, failed = (store.add(spec, owner) for _ in range(3))
    store.finish(done, JobState.COMPLETED)
    store.finish(failed, JobState.ERROR, f"There is no {CANARY}.")
    store.close()
    draft, sealed = (f(settings.jobs / done / "stages" / "1-quantize") for f in (partial, lambda path: path))
    (draft / "model.safetensors").write_bytes(CANARY.encode())
    seal(draft, sealed, Artifact(kind="quantized", stage="quantize", options=NF4, created=now()))
    (settings.jobs / done / "events.jsonl").write_text(json.dumps({"event": "log", "text": CANARY}) + "\n")
    supervisor, servers = Supervisor(settings), Servers(settings)
    supervisor._lanes = []
    supervisor.start()
    studio = Studio(settings, supervisor, servers)
    launch = None if settings.on_space else Launch(settings)
    app = entry.web_app(studio, launch)
    with _serving(app) as url:
        host = host or url.removeprefix("http://")
        house = House(studio, app, launch, url, host, owner, done, queued, failed)
        spec = {"base_model": f"anna/{CANARY}", "options": {"stage": "finetune", "dataset": f"anna/{CANARY}"}}
        house.preview = supervisor.preview(Preview.model_validate(spec), owner, None)
        yield house
    servers.stop()
    supervisor.stop()


@contextlib.contextmanager
def _serving(app):
    with socket.create_server(("127.0.0.1", 0)) as port:
        running = server(app, log_level="critical", timeout_graceful_shutdown=1)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [port]})
        thread.start()
        yield f"http://127.0.0.1:{port.getsockname()[1]}"
        running.should_exit = True
        thread.join(20)


def routes(app, prefix=""):
    """Walk through all routes, those of mounted apps and included routers too; give method and path."""
    for route in app.routes:
        if hasattr(route, "original_router"):
            yield from routes(route.original_router, prefix)
        elif hasattr(route, "methods"):
            yield from ((method, prefix + route.path) for method in sorted(route.methods))
        else:
            yield from routes(route.app, prefix + route.path)


def call(fn, given, profile):
    """Call an event's handler as Gradio does, but with values that Gradio might not let through.

    Args:
        fn: The event.
        given: Values of its inputs.
        profile: Of who has signed in.
    """
    token = gr.OAuthToken("hf_" + "x" * 30, "", 0) if profile else None
    extra = {"profile": profile, "oauth": token, "data": SimpleNamespace(index=0, value="hello")}
    extra["request"] = SimpleNamespace(request=SimpleNamespace(session={}), session={})
    wanted = {key: value for key, value in extra.items() if key in inspect.signature(fn.fn).parameters}
    said = fn.fn(given, **wanted) if fn.inputs_as_dict else fn.fn(*given.values(), **wanted)
    return list(said) if inspect.isgenerator(said) else said


def space_of_anna(tmp_path_factory):
    """A Space of Anna's that Ben may use, too, and Carl may not."""
    provider = OpenId()
    environment = provider.environment | {
        "SPACE_ID": "anna/studio", "SPACE_HOST": SPACE_HOST, "SPACE_AUTHOR_NAME": "anna", "SYSTEM": "spaces",
        "WEIGHTSMITH_MEMBERS": "Anna, ben-org",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in environment.items():
            patch.setenv(variable, value)
            if hasattr(gradio.oauth, variable):  # read when it was imported
                patch.setattr(gradio.oauth, variable, value)
        data = tmp_path_factory.mktemp("space")
        with furnished(data, SPACE_HOST, "id-of-anna", upload_quota_bytes=3_000_000) as house:
            house.provider = provider
            house.cookies = {
                user: provider.sign_in(house.url, SPACE_HOST, user, token) for user, token in TOKENS.items()
            }
            anna = Visitor(house, house.cookies["anna"])
            house.file = anna.upload("rows.jsonl", CANARY.encode(), "annas0upload")
            anna.session = house.lasting
            assert CANARY in anna.press(event(house.page, "jobs_load"), [None])
            yield house
    provider.stop()


def event(page, wanted):
    return next(fn for fn in page.fns.values() if fn.api_name == wanted)


def profile(user):
    told = {"sub": f"id-of-{user}", "name": user, "preferred_username": user, "profile": "", "picture": ""}
    return gr.OAuthProfile(told | {"orgs": [{"preferred_username": f"{user}-org"}]})


def identities(house):
    """Those who knock, in the order of the table."""
    forged = house.cookies["anna"][:-4] + "AAAA"
    foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    return {
        "anna": Visitor(house, house.cookies["anna"]),
        "ben": Visitor(house, house.cookies["ben"]),
        "nobody": Visitor(house),
        "forger": Visitor(house, forged),
        "foreign": Visitor(house, house.cookies["anna"], **foreign),
    }
