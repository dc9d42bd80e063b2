"""A browser, and an app of its own to look at."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
from playwright.sync_api import TimeoutError, expect, sync_playwright

from backend.processes.child import ROOT
from backend.processes.marks import marked, marker_prefix

CHROMIUM = "/usr/bin/chromium"

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
]  # fmt: skip


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def printed(process):
    """The address that an app prints when it listens: what is sent there waits until it answers."""
    said = process.stdout.readline()
    assert said.startswith("Weightsmith runs on "), said
    return said.split()[-1]


class App:
    """app.py in a process of its own, on a data folder that outlives it."""

    def __init__(self, data):
        self.data, self.port, self.process, self.address = data, free_port(), None, None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        env = os.environ | {"WEIGHTSMITH_DATA": str(self.data), "WEIGHTSMITH_PORT": str(self.port)}
        self.process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
        )
        self.address = printed(self.process)
        return self

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) in (0, -signal.SIGTERM)


@contextmanager
def running(data):
    """An app on a data folder, until it is stopped."""
    started = App(data).start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with running(tmp_path_factory.mktemp("browser") / "data") as started:
        yield started
    assert not list(marked(marker_prefix(started.data)))


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(app, chromium):
    """A new visitor's page, with the addresses that it asked for in `page.asked`."""
    context = chromium.new_context(viewport={"width": 1440, "height": 1000})
    opened = context.new_page()
    opened.set_default_timeout(20_000)
    opened.asked = []
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.goto(app.address)
    expect(opened.locator("#model-facts")).to_contain_text("LlamaForCausalLM", timeout=20_000)
    yield opened
    context.close()


def tab(page, name):
    page.get_by_role("tab", name=name).click()


def open_chat(page):
    """Open the Chat tab with all of its options."""
    tab(page, "Chat")
    page.locator("#chat-room").get_by_text("More options").first.click()


def choose(page, field, option):
    """Pick an option of a dropdown; another one's list may still be closing, and what is above it growing."""
    box = page.locator(f"{field} input")
    for seconds in (3, 3, 20):
        box.evaluate("field => field.scrollIntoView({ block: 'center' })")  # the list needs room
        box.click()
        try:
            page.locator(field).get_by_role("option", name=option).click(timeout=1000 * seconds)
        except TimeoutError:
            if seconds == 20:
                raise
            box.press("Escape")
        else:
            return
