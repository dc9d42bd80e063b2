"""The app's own process: light, refused in words where it cannot start, and gone when it is told to go."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from backend.disk import PREFIX
from backend.processes.child import ROOT
from tests.support.browser import printed

IDLE_LIMIT = 250 * 1024  # KiB resident


def start(data, port, **env):
    env = os.environ | {"WEIGHTSMITH_DATA": str(data), "WEIGHTSMITH_PORT": str(port)} | env
    return subprocess.Popen(
        [sys.executable, "app.py"], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def refused(data, port, **env):
    process = start(data, port, **env)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    data, uploads = tmp_path_factory.mktemp("app"), tmp_path_factory.mktemp("uploads")
    (uploads / f"{PREFIX}killed").mkdir()  # what an app that was killed has left
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    process = start(data, port, GRADIO_TEMP_DIR=str(uploads))
    assert urllib.request.urlopen(printed(process), timeout=60).status == 200
    yield process, data, port, uploads
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode in (0, -signal.SIGTERM)
    assert not any(uploads.glob(f"{PREFIX}*"))


def test_a_taken_port_is_named(running, tmp_path):
    said = refused(tmp_path, running[2])
    assert str(running[2]) in said
    assert "WEIGHTSMITH_PORT" in said


def test_a_second_start_on_the_same_data_names_the_first(running):
    process, data, *_ = running
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    said = refused(data, port)
    assert f"process {process.pid}" in said


def test_beyond_this_machine_nothing_starts_without_a_password(tmp_path):
    said = refused(tmp_path / "data", 7999, WEIGHTSMITH_HOST="0.0.0.0")
    assert "'0.0.0.0'" in said
    assert "set WEIGHTSMITH_PASSWORD" in said
    assert not (tmp_path / "data").exists()


def test_the_idle_web_process_is_small(running):
    time.sleep(3)
    status = Path(f"/proc/{running[0].pid}/status").read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    assert resident < IDLE_LIMIT


def test_uploads_come_to_where_nobody_else_reads_and_those_of_a_killed_app_are_gone(running):
    [place] = running[3].glob(f"{PREFIX}*")
    assert place.name != f"{PREFIX}killed"
    assert place.stat().st_mode & 0o777 == 0o700


def test_the_web_process_never_maps_torch(running):
    assert "libtorch" not in Path(f"/proc/{running[0].pid}/maps").read_text()
