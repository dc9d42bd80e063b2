"""Decode speed: the tokens a second that an engine writes alone, one after the other, for the quality report."""

import json
import time
from pathlib import Path

from backend.disk import scratch
from backend.errors import AppError
from backend.progress import Report
from backend.serve.engines import EngineName
from backend.serve.server import Server
from backend.serve.servers import Servers
from backend.settings import Settings

TOKENS = 32
PROMPT = "The capital of France is"


def decode_speed(folder: Path, engine: EngineName, settings: Settings, report: Report) -> float | None:
    """Start a server for a model folder, have it write, and stop it.

    Args:
        folder: Of the model.
        engine: That serves it.
        settings: How long a server may take to start; its log lies in a folder that is removed again.
        report: Receives why it could not be timed, where that is so.

    Returns:
        Tokens a second, or None where it could not be timed.
    """
    import httpx

    report.log(f"Timing '{folder.name}' in {engine}.")
    with scratch(settings.data) as place:
        servers = Servers(settings.model_copy(update={"data": place}))
        try:
            servers.open(folder, engine)
            server = servers.wait(folder, settings.server_start_seconds)
            _written(server, TOKENS)  # what is set up once
            return round(_written(server, TOKENS), 2)
        except (AppError, httpx.HTTPError) as e:
            report.warn(f"The speed of '{folder.name}' could not be timed in {engine}: {e}")
            return None
        finally:
            servers.stop()


def _written(server: Server, tokens: int) -> float:
    """Have a server write so many tokens, and return those a second after the first."""

    import httpx

    request = {"model": server.model, "prompt": PROMPT, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    headers, times = {"Authorization": f"Bearer {server.key}"}, list[float]()
    url = f"{server.base_url}/completions"
    loopback = httpx.Client(headers=headers, timeout=300, trust_env=False)  # no proxy leads there
    with loopback, loopback.stream("POST", url, json={**request, "stream": True}) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: {") and json.loads(line.removeprefix("data: ")).get("choices"):
                times.append(time.monotonic())
    if len(times) < 2:
        raise httpx.ReadError("it wrote nothing")
    return (tokens - 1) / max(times[-1] - times[0], 1e-6)
