"""app.py as a process: quick to answer, small, alone on its port and data folder, and quick to stop."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.real
ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start(data: Path, port: int) -> subprocess.Popen[str]:
    env = os.environ | {"WEIGHTSMITH_DATA": str(data), "WEIGHTSMITH_PORT": str(port)}
    return subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)


def until_it_answers(port: int, app: subprocess.Popen[str]) -> float:
    """Seconds until the first HTTP 200."""
    began = time.monotonic()
    while app.poll() is None and time.monotonic() - began < 60:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
                assert answer.status == 200
                return time.monotonic() - began
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.02)
    raise AssertionError(f"no answer: {app.stderr.read() if app.stderr else ''}")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], int, Path]]:
    port, data = free_port(), tmp_path_factory.mktemp("data")
    process = start(data, port)
    until_it_answers(port, process)
    yield process, port, data
    process.kill()


def test_the_first_page_comes_within_one_and_a_half_times_the_import_of_gradio(tmp_path: Path) -> None:
    imports, answers = [], []
    for i in range(3):  # interleaved, the best of each: another process may take the machine meanwhile
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import gradio"], check=True)
        imports.append(time.monotonic() - began)
        port = free_port()
        process = start(tmp_path / str(i), port)
        answers.append(until_it_answers(port, process))
        process.terminate()
        process.wait(20)
    assert min(answers) <= 1.5 * min(imports), (answers, imports)


def test_an_idle_process_takes_at_most_250_mib(app: tuple[subprocess.Popen[str], int, Path]) -> None:
    status = Path(f"/proc/{app[0].pid}/status").read_text()
    assert int(status.split("VmRSS:")[1].split()[0]) / 1024 <= 250


def test_the_page_may_load_nothing_from_other_hosts(app: tuple[subprocess.Popen[str], int, Path]) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{app[1]}/", timeout=10) as answer:
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


def test_nothing_in_the_data_folder_can_be_fetched(app: tuple[subprocess.Popen[str], int, Path]) -> None:
    url = f"http://127.0.0.1:{app[1]}/gradio_api/file={app[2]}/jobs.sqlite"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(url, timeout=10)


def test_a_second_start_on_the_same_data_or_port_says_so_in_one_line(
    app: tuple[subprocess.Popen[str], int, Path], tmp_path: Path
) -> None:
    for data, port, words in ((tmp_path, app[1], "WEIGHTSMITH_PORT"), (app[2], free_port(), "WEIGHTSMITH_DATA")):
        second = start(data, port)
        said = second.communicate(timeout=60)[1]
        assert second.returncode == 1
        assert said.startswith("error: ")
        assert words in said
        assert len(said.strip().splitlines()) == 1


def test_it_stops_when_it_is_told_to(tmp_path: Path) -> None:
    port = free_port()
    process = start(tmp_path, port)
    until_it_answers(port, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
