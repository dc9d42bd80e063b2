"""Chat servers: keyed, on loopback, one at a time, and never left behind."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from backend.errors import HardwareError, JobError, SpecError
from backend.processes.child import ROOT
from backend.processes.marks import marked, marker_prefix
from backend.serve import servers as pool
from backend.serve.chat import ChatOptions, stream
from backend.serve.engines import choose
from backend.serve.servers import Servers
from backend.settings import Settings
from tests.support.processes import until

HELLO = [{"role": "user", "content": "hello"}]
SHORT = ChatOptions(max_tokens=8, temperature=0)


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "data").mkdir()
    return Settings(data=tmp_path / "data", cancel_seconds=5)


@pytest.fixture
def servers(settings):
    started = Servers(settings)
    yield started
    started.stop()
    assert not list(marked(marker_prefix(settings.data)))


def server_pid(settings):
    for pid in marked(marker_prefix(settings.data)):
        if b"backend.serve.engines.transformers_server" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:3]:
            return pid
    return None


@pytest.mark.real
def test_a_server_answers_whoever_has_its_key_and_nobody_else(servers, settings, tiny_model):
    servers.open(tiny_model, "transformers")
    server = servers.wait(tiny_model, 90)
    answers = list(stream(server, HELLO, SHORT))
    assert 1 <= answers[-1].tokens <= 8
    assert answers[-1].seconds_to_first_token > 0
    assert httpx.get(server.base_url + "/models").status_code == 401
    assert httpx.get(server.base_url + "/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
    right = {"Authorization": f"Bearer {server.key}"}
    models = httpx.get(server.base_url + "/models", headers=right).json()["data"]
    assert [model["id"] for model in models] == [tiny_model.name]
    command = Path(f"/proc/{server_pid(settings)}/cmdline").read_bytes()
    assert server.key.encode() not in command
    environ = Path(f"/proc/{server_pid(settings)}/environ").read_bytes()
    assert b"HF_HUB_OFFLINE=1" in environ
    assert b"HF_TOKEN" not in environ


@pytest.mark.real
def test_no_proxy_is_asked_for_a_server_on_this_machine(servers, monkeypatch, tiny_model):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    servers.open(tiny_model, "transformers")
    server = servers.wait(tiny_model, 30)
    assert list(stream(server, HELLO, SHORT))[-1].tokens


@pytest.mark.real
def test_the_same_seed_gives_the_same_answer(servers, tiny_model):
    servers.open(tiny_model, "transformers")
    server = servers.wait(tiny_model, 90)
    options = ChatOptions(max_tokens=12, temperature=1.0, seed=7)
    first, second = (list(stream(server, HELLO, options))[-1].text for _ in range(2))
    assert first == second


@pytest.mark.real
def test_models_are_held_beside_each_other_where_memory_allows_it(servers, monkeypatch, tiny_model, tiny_tied_model):
    for folder in (tiny_model, tiny_tied_model):
        servers.open(folder, "transformers")
    first, second = (servers.wait(folder, 120) for folder in (tiny_model, tiny_tied_model))
    assert [list(stream(server, HELLO, SHORT))[-1].tokens > 0 for server in (first, second)] == [True, True]
    servers.stop(tiny_model)
    assert servers.live() == [tiny_tied_model]

    monkeypatch.setattr(pool, "available_bytes", lambda: 0)
    with servers.in_use(tiny_tied_model), pytest.raises(JobError, match="is answering, and there is no memory for two"):
        servers.open(tiny_model, "transformers")
    servers.open(tiny_model, "transformers")
    assert "make room for another model" in servers.status(tiny_tied_model).text
    with pytest.raises(httpx.ConnectError):
        httpx.get(second.base_url.removesuffix("/v1") + "/health")
    assert servers.wait(tiny_model, 90).folder == tiny_model


@pytest.mark.real
def test_an_unused_server_stops_by_itself(settings, tiny_model):
    servers = Servers(settings.model_copy(update={"server_idle_seconds": 1.0}))
    servers.open(tiny_model, "transformers")
    servers.wait(tiny_model, 90)
    until(lambda: servers.status(tiny_model).state == "stopped", 20)
    assert "nobody used it" in servers.status(tiny_model).text
    until(lambda: not list(marked(marker_prefix(settings.data))), 20)


@pytest.mark.real
def test_a_killed_server_is_started_again_once(servers, settings, tiny_model):
    servers.open(tiny_model, "transformers")
    server = servers.wait(tiny_model, 90)
    os.kill(server_pid(settings), signal.SIGKILL)
    with pytest.raises(JobError, match="The server stopped while it answered"):
        list(stream(server, HELLO, SHORT))
    until(lambda: servers.status(tiny_model).state == "starting", 20)
    assert "started again" in servers.status(tiny_model).text
    again = servers.wait(tiny_model, 90)
    assert list(stream(again, HELLO, SHORT))[-1].tokens
    os.kill(server_pid(settings), signal.SIGKILL)
    until(lambda: servers.status(tiny_model).state == "failed", 20)
    assert "load the model again" in servers.status(tiny_model).text
    servers.open(tiny_model, "transformers")
    assert servers.wait(tiny_model, 90)


@pytest.mark.real
def test_the_command_line_serves_until_it_is_told_to_stop(tiny_model, tmp_path):
    env = os.environ | {"WEIGHTSMITH_DATA": str(tmp_path / "data")}
    command = [sys.executable, "-m", "backend", "serve", str(tiny_model), "--engine", "transformers", "--json"]
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    said = json.loads(process.stdout.readline())
    models = httpx.get(said["base_url"] + "/models", headers={"Authorization": f"Bearer {said['api_key']}"})
    assert models.status_code == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    process.stdout.close()
    assert not list(marked(marker_prefix(tmp_path / "data")))


def test_a_taken_port_is_refused_before_anything_starts(servers, tiny_model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(JobError, match=f"port {port}"):
            servers.open(tiny_model, port=port)
    assert servers.status(tiny_model).state == "stopped"


@pytest.mark.real
def test_a_model_without_a_chat_template_says_that_it_has_none(servers, tiny_bare_model):
    servers.open(tiny_bare_model, "transformers")
    with pytest.raises(JobError, match="no chat template"):
        next(stream(servers.wait(tiny_bare_model, 90), HELLO, SHORT))


@pytest.mark.real
def test_a_folder_that_cannot_be_loaded_says_so(servers, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    servers.open(folder, "transformers")
    with pytest.raises(JobError, match="'broken' ended while it started"):
        servers.wait(folder, 60)


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(SpecError, match=r"config\.json"):
        choose(tmp_path)


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="says what happens without a GPU")
def test_a_model_made_for_offloading_wants_a_gpu(tmp_path):
    quantization = {"quant_method": "bitsandbytes", "llm_int8_enable_fp32_cpu_offload": True}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    with pytest.raises(HardwareError, match="llm_int8_enable_fp32_cpu_offload"):
        choose(tmp_path)


def test_a_conversation_longer_than_any_context_is_refused():
    with pytest.raises(JobError, match="start a new one"):
        next(stream(None, [{"role": "user", "content": "x" * 200_001}], SHORT))


@pytest.mark.real
def test_a_talk_longer_than_the_model_reads_is_called_so_and_answers_end_there(servers, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "short")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    servers.open(folder, "transformers")
    server = servers.wait(folder, 90)
    words = r"The conversation has \d+ tokens, and the model reads 64 .* [Ss]horten the conversation"
    with pytest.raises(JobError, match=words):
        list(stream(server, [{"role": "user", "content": "hello " * 20}], SHORT))
    answer = list(stream(server, HELLO, ChatOptions(max_tokens=512, temperature=0)))[-1]
    assert answer.context <= 64
    assert servers.status(folder).live
