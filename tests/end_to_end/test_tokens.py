"""A token on its way through a whole publication, given by a sign-in or typed: it is left behind nowhere."""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from backend.processes.child import ROOT
from tests.support.house import SPACE_HOST, Visitor
from tests.support.openid import OpenId

pytestmark = pytest.mark.real

TOKEN = "hf_CANARY" + "q7Xk" * 7
FORMS = (TOKEN.encode(), base64.b64encode(TOKEN.encode()).rstrip(b"="))


class Watch(threading.Thread):
    """Reads the arguments and the environment of every process there is, again and again."""

    def __init__(self):
        super().__init__(daemon=True)
        self.found, self.commands, self.rounds, self.done = [], set(), 0, threading.Event()

    def run(self):
        while not self.done.wait(0.02):
            self.rounds += 1
            for process in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    try:
                        text = (process / name).read_bytes()
                    except OSError:  # it has ended, or is the kernel's
                        continue
                    self.found += [f"{name} of {process.name}"] * any(form in text for form in FORMS)
                    if name == "cmdline":
                        self.commands.add(text)


class Page(Visitor):
    """The page as a program uses it: what is set stays set, and what an answer sets is set."""

    def __init__(self, url, host, cookie):
        super().__init__(SimpleNamespace(host=host, url=url), cookie)
        html = self.http.get("/").text
        config = json.JSONDecoder().raw_decode(html, re.search(r"window\.gradio_config ?= ?", html).end())[0]
        self.parts = {part["id"]: part for part in config["components"]}
        self.events = config["dependencies"]
        self.values = {key: part["props"].get("value") for key, part in self.parts.items()}
        self.ids = {part["props"]["elem_id"]: key for key, part in self.parts.items() if part["props"].get("elem_id")}
        self.heard = [html]

    def set(self, **values):
        for name, value in values.items():
            self.values[self.ids[name.replace("__", "-")]] = value

    def do(self, name, event):
        """Have all that hangs on a component's event happen, in turn."""
        target = [self.ids.get(name), event]
        chosen = [
            found for found in self.events if target in [list(t) for t in found["targets"]] and found["backend_fn"]
        ]
        assert chosen, (name, event)
        for found in chosen:
            states = {key for key, part in self.parts.items() if part["type"] == "state"}
            data = [None if key in states else self.values[key] for key in found["inputs"]]
            said = self.press(SimpleNamespace(_id=found["id"]), data)
            self.heard.append(said)
            ended = json.loads(said.splitlines()[-1].removeprefix("data: "))
            assert ended["success"], ended["output"]
            for key, value in zip(found["outputs"], ended["output"]["data"], strict=True):
                if not isinstance(value, dict) or value.get("__type__") != "update":
                    self.values[key] = value
                elif "value" in value:
                    self.values[key] = value["value"]

    def wait(self, *title, seconds=120):
        """Ask how the jobs stand until the one with this title is done."""
        ends = time.monotonic() + seconds
        load = next(found for found in self.events if found["targets"][0][1] == "load" and len(found["inputs"]) == 1
                    and self.ids["job-list"] in found["outputs"])  # fmt: skip
        while time.monotonic() < ends:
            self.heard.append(self.press(SimpleNamespace(_id=load["id"]), [None]))
            if "\\n".join((*title, "Done")) in self.heard[-1]:
                return
            assert "\\nFailed" not in self.heard[-1], self.heard[-1]
            time.sleep(0.3)
        pytest.fail(f"{title} is not done: {self.heard[-1]}")


@pytest.fixture(params=["signed in on a Space", "typed on one's own machine"])
def visit(request, tmp_path):
    """An app and a page of it, with the token in its cookie or to be typed; all that it writes lies in tmp_path."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    provider, space = OpenId(), "Space" in request.param
    (tmp_path / "tmp").mkdir()
    env = os.environ | {
        "WEIGHTSMITH_DATA": str(tmp_path / "data"), "WEIGHTSMITH_PORT": str(port), "TMPDIR": str(tmp_path / "tmp"),
        "GRADIO_TEMP_DIR": str(tmp_path / "tmp" / "gradio"), "HF_HOME": str(tmp_path / "hf"),
    }  # fmt: skip
    if space:
        env |= {"SPACE_ID": "anna/studio", "SPACE_HOST": SPACE_HOST, "SPACE_AUTHOR_NAME": "anna"} | provider.environment
    with (tmp_path / "errors.log").open("wb") as errors:
        app = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=errors)
    url = f"http://127.0.0.1:{port}"
    said = []
    while not said or "runs on" not in said[-1]:
        said.append(app.stdout.readline().decode())
    if space:
        page = Page(url, SPACE_HOST, provider.sign_in(url, SPACE_HOST, "anna", TOKEN))
    else:
        came = Visitor(SimpleNamespace(host=f"127.0.0.1:{port}", url=url)).http.get(said[-1].split()[-1])
        page = Page(url, f"127.0.0.1:{port}", came.headers["set-cookie"].partition(";")[0])
    yield page, not space
    app.send_signal(signal.SIGTERM)
    said.append(app.communicate(timeout=30)[0].decode())
    provider.stop()
    assert not [form for form in FORMS if form in "".join(said).encode()]
    assert not list(with_token(tmp_path))


def with_token(folder):
    """Find the files that hold the token."""
    return (path for path in folder.rglob("*") if path.is_file() and any(form in path.read_bytes() for form in FORMS))


def test_what_looks_for_a_token_finds_one(tmp_path):
    watch = Watch()
    watch.start()
    for where in ({"env": {"X": TOKEN}}, {"args": [sys.executable, "-c", "import time; time.sleep(5)", TOKEN]}):
        process = subprocess.Popen(**{"args": ["sleep", "5"], "stderr": subprocess.DEVNULL, **where})
        time.sleep(1)
        process.kill()
        process.wait()
    watch.done.set()
    watch.join()
    assert {found.split()[0] for found in watch.found} >= {"environ", "cmdline"}
    (tmp_path / "x").write_bytes(b"..." + FORMS[1])
    assert list(with_token(tmp_path)) == [tmp_path / "x"]


def test_a_token_is_left_behind_nowhere(hub, tiny_model, visit, tmp_path):
    hub.add_model("anna/tiny", tiny_model, private=True)
    hub.add_token(TOKEN, "anna")
    (page, typed), watch = visit, Watch()
    watch.start()
    if typed:
        page.set(publish__token=TOKEN)
    page.set(model__query="anna/tiny", evaluate=False, check=False, method="nf4")
    page.do("model-find", "click")
    page.do("start", "click")
    page.wait("Quantize to NF4", "tiny")
    page.do("job-publish", "click")
    page.set(publish__where="hub", publish__repo="anna/made", publish__private=True)
    page.do("publish-start", "click")
    page.wait("Publish", "anna/made")
    watch.done.set()
    watch.join()
    pushed = hub.files("anna/made")
    link = next(
        found[0] for text in page.heard if (found := re.findall(r"/artifacts/\w+/[\w-]+/model\.safetensors", text))
    )
    assert page.http.get(link).content == pushed["model.safetensors"]
    assert not [name for name, content in pushed.items() if any(form in content for form in FORMS)]
    assert not watch.found
    assert any(b"backend.jobs.worker" in command for command in watch.commands)
    assert watch.rounds > 50
    shown = [text for text in page.heard if any(form.decode() in text for form in FORMS)]
    assert not shown
    assert not list(with_token(tmp_path))
