"""Streaming: repo to repo through a small disk, with real processes, kills and a Hub that fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from backend.__main__ import main
from backend.disk import JOURNAL, sha256
from backend.errors import HardwareError
from backend.jobs.store import JobState
from backend.jobs.supervisor import Supervisor
from backend.models import fetch
from backend.models.fetch import fetch_model
from backend.models.inspection import inspect
from backend.processes.child import ROOT
from backend.processes.marks import marked, marker_prefix
from backend.progress import silent
from backend.quantize import METHODS
from backend.recipes import Streaming, parse_recipe
from backend.settings import Settings
from backend.stages.estimate import estimate
from backend.stages.prepare import prepare
from backend.stages.stream.handover import ON_DISK
from backend.weights.checkpoint import Checkpoint
from backend.weights.header import header_from
from backend.weights.output import Output
from tests.support.adapters import TINY, edited, save_adapter
from tests.support.jobs import completed, finished
from tests.support.loopback_hub import LoopbackHub
from tests.support.processes import until

TOKEN = "hf_" + "secret" * 6
STAGE = {"stage": "quantize", "method": "nf4", "max_shard_size": 30_000}


@pytest.fixture(scope="session")
def sharded_model(tiny_model, tmp_path_factory):
    """The tiny model in shards of at most 50 kB."""
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("sharded") / "tiny-llama"
    LlamaForCausalLM.from_pretrained(tiny_model).save_pretrained(folder, max_shard_size="50KB")
    for path in tiny_model.iterdir():
        if path.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(path, folder)
    assert len(list(folder.glob("*.safetensors"))) >= 5
    return folder


@pytest.fixture(scope="session")
def expected(sharded_model, tmp_path_factory):
    """What quantizing on the disk writes: name to sha256."""
    made = tmp_path_factory.mktemp("expected")
    recipe = parse_recipe({"base_model": "me/tiny", "stages": [STAGE]})
    with Checkpoint.of(sharded_model) as weights:
        METHODS["nf4"].quantize(weights, Output(made), recipe.stages[0], silent())
    assert len(list(made.glob("*.safetensors"))) >= 4
    return {path.name: sha256(path) for path in made.iterdir()}


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return tmp_path / "data"


@pytest.fixture
def recipe(hub, sharded_model):
    commit = hub.add_model("me/tiny", sharded_model, card="---\nlicense: mit\n---\n# Tiny\n")
    hub.add_token(TOKEN, "me")
    publish = {"repo_id": "me/tiny-nf4"}
    return parse_recipe({"base_model": "me/tiny", "revision": commit, "stages": [STAGE], "publish": publish})


@pytest.fixture
def supervisor(data):
    started = Supervisor(Settings(data=data, cancel_seconds=1))
    started.start()
    yield started
    started.stop()


class Watch(threading.Thread):
    """Looks at what lies on the disk all the time, and keeps the most that it saw."""

    def __init__(self, data):
        super().__init__(daemon=True)
        self.data, self.ended, self.most = data, False, Counter()
        self.start()

    def run(self):
        while not self.ended:
            for relay in self.data.glob("*/*/stages/*.partial"):
                shards = [path.parent.name for path in relay.rglob("*.safetensors")]
                came, made = len(shards) - shards.count("output"), shards.count("output")
                self.most = Counter(came=max(came, self.most["came"]), made=max(made, self.most["made"]))
            time.sleep(0.001)

    def stop(self):
        self.ended = True
        self.join()
        return dict(self.most)


def relay_of(data, job_id):
    return data / "jobs" / job_id / "stages" / "0-stream.partial"


def sent(data, job_id):
    """Return the sha256 of the shards that are known to be on the Hub."""
    path = relay_of(data, job_id) / JOURNAL
    return json.loads(path.read_text()) if path.is_file() else {}


def process(data, part):
    """Return the number of the process that does a part of the step, if it runs."""
    for pid in marked(marker_prefix(data)):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if command[1:3] == [b"-m", b"backend.jobs.worker"] and command[5] == part.encode():
            return pid
    return None


def slow(hub, seconds=0.2):
    """Have every upload of a large file take a while."""
    hub.fail("PUT /lfs/*", lambda body: time.sleep(seconds) or body, times=-1)


def hold(hub, after=1):
    """Have the Hub take some uploads of large files and no more until what this gives is set."""
    taken, released = iter(range(after)), threading.Event()

    def take(body):
        if next(taken, None) is None:
            released.wait(60)
        return body

    hub.fail("PUT /lfs/*", take, times=-1)
    return released


def uploads(hub):
    return Counter(request.path.rpartition("/")[2] for request in hub.requests if request.method == "PUT")


def hashes(hub, repo_id):
    files = hub.repos["models", repo_id].head.files
    return {name: blob.sha256 for name, blob in files.items() if name != ".gitattributes"}


def test_only_a_single_stage_with_the_hub_at_both_ends_streams(recipe, tmp_path):
    def changed(**fields):
        return parse_recipe({**recipe.model_dump(exclude_none=True), **fields}, paths=True)

    assert recipe.can_stream
    assert Streaming(recipe=recipe).steps == ("stream",)
    assert not changed(publish=None).can_stream
    assert not changed(publish={"to_folder": str(tmp_path)}).can_stream
    assert not changed(base_model="demo", revision=None).can_stream
    assert not changed(stages=[STAGE, {"stage": "evaluate"}]).can_stream


def test_a_model_goes_from_repo_to_repo_through_two_shards_at_a_time(hub, recipe, expected, data, tmp_path, capsys):
    slow(hub)
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    watch = Watch(data)
    assert main(["run", str(file), "--json"]) == 0, capsys.readouterr().err
    assert watch.stop() == {"came": ON_DISK, "made": ON_DISK}
    [place] = json.loads(capsys.readouterr().out)["published"]
    assert place["location"] == f"{hub.url}/me/tiny-nf4"
    assert [commit.title for commit in hub.commits("me/tiny-nf4")][:-1] == ["initial commit"]
    assert place["commit"] == hub.commits("me/tiny-nf4")[-1].oid
    there = hashes(hub, "me/tiny-nf4")
    assert {name: there[name] for name in expected} == expected
    beside = {"README.md", "artifact.json", "recipe.yaml", "generation_config.json", "tokenizer.json"}
    assert set(there) == {*expected, *beside, "tokenizer_config.json", "chat_template.jinja"}
    manifest = json.loads(hub.files("me/tiny-nf4")["artifact.json"])
    assert {name: found["sha256"] for name, found in manifest["files"].items()}.items() <= there.items()
    assert not list(data.rglob("*.safetensors"))


@pytest.mark.real
def test_streaming_publishes_what_fetching_and_publishing_would(hub, recipe, data, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    assert main(["run", str(file)]) == 0
    unchecked = {"repo_id": "me/other", "insist": True}  # what streams is never whole here, and not checked
    file.write_text(parse_recipe(recipe.model_dump(exclude_none=True) | {"publish": unchecked}).to_yaml())
    assert main(["run", str(file), "--output", str(tmp_path / "out")]) == 0
    streamed, whole = hashes(hub, "me/tiny-nf4"), hashes(hub, "me/other")
    assert set(streamed) == set(whole)
    assert {name for name in whole if whole[name] != streamed[name]} == {"README.md", "artifact.json"}
    cards = [hub.files(name)["README.md"].decode().splitlines() for name in ("me/tiny-nf4", "me/other")]
    differing = {line for line in set(cards[0]) ^ set(cards[1]) if "me/" not in line}
    assert all(line.startswith(("# ", "| Time", "| Peak memory", "| Made")) for line in differing)


@pytest.mark.real
@pytest.mark.parametrize("more", [[], [STAGE]])
def test_a_merge_streams_too(hub, recipe, sharded_model, data, tmp_path, more):
    adapter = save_adapter(sharded_model, tmp_path / "adapter", target_modules=TINY)
    hub.add_model("me/adapter", edited(adapter, base_model_name_or_path="me/tiny"))
    merging = {"stage": "merge", "adapters": ["me/adapter"], "merge_into": "original" if more else "nf4"}
    merging |= {"keep": not more, "max_shard_size": 60_000}
    data_of = recipe.model_dump(exclude_none=True) | {"stages": [merging, *more]}
    file, watch = tmp_path / "recipe.yaml", Watch(data)
    file.write_text(parse_recipe(data_of).to_yaml())
    assert main(["run", str(file)]) == 0
    seen = watch.stop()
    assert max(seen["came"], seen["made"]) <= ON_DISK + 1  # the adapter's file is one more
    data_of["publish"] = {"repo_id": "me/other", "insist": True}
    file.write_text(parse_recipe(data_of).to_yaml())
    assert main(["run", str(file), "--output", str(tmp_path / "out")]) == 0
    streamed, whole = hashes(hub, "me/tiny-nf4"), hashes(hub, "me/other")
    assert {name for name in whole if whole[name] != streamed.get(name)} == {"README.md", "artifact.json"}


@pytest.mark.real
@pytest.mark.parametrize("part", ["online", "offline"])
def test_a_killed_stream_goes_on_after_its_last_shard(hub, recipe, expected, data, supervisor, part):
    released = hold(hub)
    job_id = supervisor.submit(Streaming(recipe=recipe), "me", TOKEN)
    until(lambda: sent(data, job_id))
    before = len(hub.requests)
    os.kill(process(data, part), signal.SIGKILL)
    released.set()
    until(lambda: supervisor.get(job_id, "me").attempt == 1)
    known = set(sent(data, job_id))
    completed(supervisor, job_id)
    there = hashes(hub, "me/tiny-nf4")
    assert {name: there[name] for name in expected} == expected
    assert all(uploads(hub)[oid] == 1 for oid in known)
    again = [r.path for r in hub.requests[before:] if "00001-of" in r.path and r.method == "GET"]
    assert len(again) == 1  # its header
    assert len(hub.commits("me/tiny-nf4")) == 2
    assert supervisor.published(job_id, "me")[0]["location"] == f"{hub.url}/me/tiny-nf4"
    assert supervisor.artifacts(job_id, "me") == []


@pytest.mark.real
def test_cancel_ends_both_processes_and_frees_the_disk(hub, recipe, expected, data, supervisor):
    released = hold(hub)
    job_id = supervisor.submit(Streaming(recipe=recipe), "me", TOKEN)
    until(lambda: sent(data, job_id))
    supervisor.cancel(job_id, "me")
    released.set()
    assert finished(supervisor, job_id).state == JobState.CANCELED
    assert not list(marked(marker_prefix(data)))
    assert not list(data.rglob("*.safetensors"))
    known = set(sent(data, job_id))
    supervisor.retry(job_id, "me", TOKEN)
    completed(supervisor, job_id)
    there = hashes(hub, "me/tiny-nf4")
    assert {name: there[name] for name in expected} == expected
    assert all(uploads(hub)[oid] == 1 for oid in known)


@pytest.mark.real
def test_a_damaged_shard_is_refused_and_nothing_is_published(hub, recipe, data, supervisor):
    def damage(body):
        return body if len(body) < 20_000 else body[:-1] + bytes([body[-1] ^ 1])

    hub.fail("GET *resolve*/model-00003-*", damage, times=-1)
    job_id = supervisor.submit(Streaming(recipe=recipe), "me", TOKEN)
    job = finished(supervisor, job_id)
    assert job.state == JobState.ERROR
    assert "'model-00003-of-" in job.error
    assert "came damaged twice" in job.error
    assert not hub.files("me/tiny-nf4")
    assert not list(marked(marker_prefix(data)))
    hub.faults.clear()
    supervisor.retry(job_id, "me", TOKEN)
    completed(supervisor, job_id)


@pytest.mark.real
def test_a_stream_whose_commit_got_no_reply_is_published_once(hub, recipe, data, supervisor):
    hub.fail("POST */commit/*", "lost")
    completed(supervisor, supervisor.submit(Streaming(recipe=recipe), "me", TOKEN))
    assert len(hub.commits("me/tiny-nf4")) == 2


@pytest.mark.real
def test_the_token_is_on_no_disk_and_the_arithmetic_has_neither_token_nor_network(hub, recipe, data, supervisor):
    released = hold(hub)
    job_id = supervisor.submit(Streaming(recipe=recipe), "me", TOKEN)
    until(lambda: sent(data, job_id))
    worker = process(data, "offline")
    environ = Path(f"/proc/{worker}/environ").read_bytes()
    assert b"HF_HUB_OFFLINE=1" in environ
    assert TOKEN.encode() not in environ
    if subprocess.run(["unshare", "-Urn", "true"], check=False, capture_output=True).returncode == 0:
        assert os.readlink(f"/proc/{worker}/ns/net") != os.readlink("/proc/self/ns/net")
    on_disk = [path.read_bytes() for path in data.rglob("*") if path.is_file()]
    assert not [content for content in on_disk if TOKEN.encode() in content]
    released.set()
    completed(supervisor, job_id)
    assert not [path for path in data.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_a_trained_head_behind_a_tied_flag_goes_from_repo_to_repo(hub, sharded_model, data, tmp_path):
    base = shutil.copytree(sharded_model, tmp_path / "base")
    said = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(said | {"tie_word_embeddings": True}))
    hub.add_model("me/headed", base)
    hub.add_token(TOKEN, "me")
    file = tmp_path / "recipe.yaml"
    stage, publish = {"stage": "quantize", "method": "cast"}, {"repo_id": "me/headed-cast"}
    file.write_text(json.dumps({"base_model": "me/headed", "stages": [stage], "publish": publish}))
    assert main(["run", str(file)]) == 0
    files = hub.files("me/headed-cast")
    assert json.loads(files["config.json"])["tie_word_embeddings"] is False
    weights = files["model.safetensors"]
    written = header_from(lambda start, end: weights[start:end], len(weights), "model.safetensors").tensors
    assert {tensor.name for tensor in written} == {tensor.name for tensor in inspect(str(base)).tensors}


@pytest.mark.parametrize("method", ["fp8", "mxfp4"])
def test_codes_with_scales_go_from_repo_to_repo_as_they_are_written_here(
    hub, recipe, sharded_model, data, tmp_path, method
):
    chosen = {"stages": [STAGE | {"method": method}], "publish": {"repo_id": f"me/tiny-{method}"}}
    changed = parse_recipe(recipe.model_dump(exclude_none=True) | chosen)
    assert changed.can_stream
    file, watch = tmp_path / "recipe.yaml", Watch(data)
    file.write_text(changed.to_yaml())
    assert main(["run", str(file)]) == 0
    seen = watch.stop()
    assert 0 < max(seen["came"], seen["made"]) <= ON_DISK
    (tmp_path / "here").mkdir()
    with Checkpoint.of(sharded_model) as weights:
        METHODS[method].quantize(weights, Output(tmp_path / "here"), changed.stages[0], silent())
    there = hashes(hub, f"me/tiny-{method}")
    expected = {path.name: sha256(path) for path in (tmp_path / "here").iterdir()}
    assert {name: there[name] for name in expected} == expected


@pytest.mark.real
def test_a_killed_command_goes_on_when_it_is_given_again(hub, recipe, expected, data, tmp_path):
    released = hold(hub)
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    command = [sys.executable, "-m", "backend", "run", str(file)]
    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    journal = until(lambda: next(data.glob(f"runs/*/stages/0-stream.partial/{JOURNAL}"), None))
    until(lambda: json.loads(journal.read_text()))
    first.kill()
    first.wait()
    released.set()
    [home] = (data / "runs").iterdir()
    until(lambda: not list(marked(marker_prefix(home))), seconds=10)
    known = set(json.loads(journal.read_text()))
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False).returncode == 0
    there = hashes(hub, "me/tiny-nf4")
    assert {name: there[name] for name in expected} == expected
    assert all(uploads(hub)[oid] == 1 for oid in known)
    assert not list((data / "runs").iterdir())


@pytest.mark.real
def test_shards_go_through_xet_where_the_library_has_it(sharded_model, recipe, expected, data, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    with LoopbackHub(xet=tmp_path / "xet") as hub:
        hub.add_token(TOKEN, "me")
        hub.add_model("me/tiny", sharded_model, card="---\nlicense: mit\n---\n# Tiny\n")
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "0"}
        command = [sys.executable, "-m", "backend", "run", str(file)]
        run = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )
        assert run.returncode == 0, run.stderr
        assert not uploads(hub)
        there = hashes(hub, "me/tiny-nf4")
        assert {name: there[name] for name in expected} == expected


def test_a_model_that_lies_here_already_is_not_fetched_again(hub, recipe, data):
    assert isinstance(prepare(recipe, data, TOKEN), Streaming)
    fetch_model("me/tiny", recipe.revision, data / "models", TOKEN, silent())
    assert prepare(recipe, data, TOKEN) == recipe
    shutil.rmtree(data)
    assert prepare(recipe, data, TOKEN, keep=True) == recipe


def test_the_disk_must_hold_a_few_shards_and_not_the_model(hub, recipe, data, monkeypatch):
    def free(count):
        monkeypatch.setattr(fetch.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, count))

    facts = inspect("me/tiny")
    passing, whole = (estimate(recipe, facts, data, keep).disk_bytes for keep in (False, True))
    free((passing + whole) // 2)
    assert isinstance(prepare(recipe, data, TOKEN), Streaming)
    with pytest.raises(HardwareError):
        prepare(recipe, data, TOKEN, keep=True)
    free(passing // 2)
    with pytest.raises(HardwareError, match=r"It needs .* and .* are free: free .*"):
        prepare(recipe, data, TOKEN)
