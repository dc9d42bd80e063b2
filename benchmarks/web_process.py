"""How fast the page answers and how little it holds: app.py against a bare `import gradio`, in turn.

Every start is a fresh process.

`python -m benchmarks.web_process` writes benchmarks/results/web_process.json.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

from backend.artifacts.artifact import versions
from backend.machine.hardware import hardware
from benchmarks.figures import spread

ROUNDS = 5
IDLE = 5.0  # seconds after the first answer at which memory is read
RESULTS = Path(__file__).parent / "results" / "web_process.json"


def main() -> None:
    """Measure, print and write."""
    imports, answers, memory = [], [], []
    for _ in range(ROUNDS):
        imports.append(_import_gradio())
        seconds, rss = _app()
        answers.append(seconds)
        memory.append(rss)
    ratios = [answer / bare for answer, bare in zip(answers, imports, strict=True)]
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": hardware(),
        "versions": versions(("gradio", "fastapi", "uvicorn", "huggingface-hub", "pydantic")),
        "rounds": ROUNDS,
        "import_gradio_seconds": spread(imports, digits=2),
        "first_200_seconds": spread(answers, digits=2),
        "ratio": spread(ratios, digits=2),
        "idle_rss_mib": spread(memory, digits=2),
    }
    RESULTS.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(RESULTS.read_text(encoding="utf-8"))


def _import_gradio() -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import gradio"], check=True)
    return time.monotonic() - started


def _app() -> tuple[float, float]:
    """Start the app; give seconds to its first 200 and MiB resident when idle."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as data:
        env = os.environ | {"WEIGHTSMITH_PORT": str(port), "WEIGHTSMITH_DATA": data}
        started = time.monotonic()
        app = subprocess.Popen([sys.executable, "app.py"], env=env, stdout=subprocess.PIPE, text=True)
        try:
            assert app.stdout
            browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
            browser.open(app.stdout.readline().split()[-1]).close()  # lets it in
            browser.open(f"http://127.0.0.1:{port}/").close()
            seconds = time.monotonic() - started
            time.sleep(IDLE)
            status = Path(f"/proc/{app.pid}/status").read_text()
            rss = next(line for line in status.splitlines() if line.startswith("VmRSS"))
            return seconds, int(rss.split()[1]) / 1024
        finally:
            app.terminate()
            app.wait()


if __name__ == "__main__":
    main()
