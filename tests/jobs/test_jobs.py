"""Jobs: sealed steps, kills, cancels, logins and owners, with real workers on a tiny model of the loopback Hub."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from backend.artifacts.artifact import MANIFEST, Artifact, now
from backend.artifacts.sealing import open_artifact, partial, seal, verify
from backend.artifacts.training_log import STOP
from backend.disk import JOURNAL
from backend.errors import JobError, SpecError
from backend.jobs.foreground import stoppable
from backend.jobs.store import JobState, Store
from backend.jobs.supervisor import Supervisor
from backend.processes.child import ROOT
from backend.processes.marks import marked, marker_prefix
from backend.publish.options import PublishOptions
from backend.recipes import parse_recipe
from backend.stages.work import stage_folder
from tests.support.jobs import caught, finished, workers
from tests.support.processes import until
from tests.support.published import publication

TOKEN = "hf_" + "secret" * 6


@pytest.mark.real
def test_a_job_ends_sealed_and_measured_and_its_token_is_nowhere(supervisor, settings, measured_recipe, hub):
    recipe = measured_recipe
    hub.add_token(TOKEN, "me")
    job_id = supervisor.submit(recipe, "me", TOKEN)
    worker = caught(settings, 1)
    environ = Path(f"/proc/{worker}/environ").read_bytes()
    os.kill(worker, signal.SIGCONT)
    assert b"HF_HUB_OFFLINE=1" in environ
    assert TOKEN.encode() not in environ
    granted = subprocess.run(["unshare", "-Urn", "true"], check=False, capture_output=True).returncode == 0
    if granted:
        worker = until(lambda: workers(settings, 2))[0]
        until(lambda: os.readlink(f"/proc/{worker}/ns/net") != os.readlink("/proc/self/ns/net"))
    job = finished(supervisor, job_id)
    assert (job.state, job.error) == (JobState.COMPLETED, None)
    [folder] = supervisor.artifacts(job_id, "me")
    artifact = verify(folder)
    assert (artifact.base_model, artifact.revision) == ("me/tiny", recipe.revision)
    assert artifact.metrics.tokens == 2 * 31
    assert artifact.metrics.text.startswith("me/prose")
    assert ("no token, no network." in supervisor.log(job_id, "me")) == granted
    assert (settings.models / "me--tiny" / recipe.revision / MANIFEST).is_file()
    on_disk = [path for path in settings.data.rglob("*") if path.is_file()]
    assert not [path for path in on_disk if TOKEN.encode() in path.read_bytes()]
    assert not [
        path for path in on_disk if path.name != "model.json" and str(settings.data).encode() in path.read_bytes()
    ]


def test_a_killed_worker_is_replaced_and_sealed_steps_are_not_done_again(supervisor, settings, recipe):
    job_id = supervisor.submit(recipe, "me", None)
    os.kill(caught(settings, 1), signal.SIGKILL)
    job = finished(supervisor, job_id)
    assert (job.state, job.attempt) == (JobState.COMPLETED, 1)
    events = (settings.jobs / job_id / "events.jsonl").read_text().splitlines()
    begun = [event["name"] for event in map(json.loads, events) if event["event"] == "step"]
    assert begun == ["fetch", "quantize", "quantize"]


@pytest.mark.real
def test_a_killed_quantization_goes_on_after_its_last_finished_shard(supervisor, settings, hub, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 40}
    deep = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
    deep.save_pretrained(tmp_path / "deep")
    commit = hub.add_model("me/deep", tmp_path / "deep")
    stages = [{"stage": "quantize", "method": "nf4", "max_shard_size": 1}]  # each tensor in a file of its own
    recipe = parse_recipe({"base_model": "me/deep", "revision": commit, "stages": stages})

    whole = supervisor.submit(recipe, "me", None)
    assert finished(supervisor, whole).state == JobState.COMPLETED
    [expected] = supervisor.artifacts(whole, "me")

    job_id = supervisor.submit(recipe, "me", None)
    partial = settings.jobs / job_id / "stages" / "1-quantize.partial"
    until(lambda: (partial / JOURNAL).is_file())
    worker = caught(settings, 1)
    finished_then = json.loads((partial / JOURNAL).read_text())["hashes"]
    times = {name: (partial / name).stat().st_mtime_ns for name in finished_then}
    os.kill(worker, signal.SIGKILL)
    assert finished(supervisor, job_id).state == JobState.COMPLETED
    [folder] = supervisor.artifacts(job_id, "me")
    assert 0 < len(finished_then) < len(list(folder.glob("*.safetensors")))
    assert {name: (folder / name).stat().st_mtime_ns for name in times} == times
    assert verify(folder).files == {**verify(expected).files, "recipe.yaml": open_artifact(folder).files["recipe.yaml"]}
    assert not (folder / JOURNAL).exists()


def test_a_killed_app_leaves_nothing_and_the_next_one_goes_on(settings, recipe):
    code = (
        "import sys, time; from pathlib import Path; from backend.jobs.supervisor import Supervisor;"
        "from backend.recipes import parse_recipe; from backend.settings import Settings;"
        f"s = Supervisor(Settings(data=Path({str(settings.data)!r}))); s.start();"
        f"print(s.submit(parse_recipe({recipe.model_dump(mode='json', exclude_none=True)!r}), 'me', None), flush=True);"
        "time.sleep(99)"
    )
    app = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    job_id = app.stdout.readline().strip()
    caught(settings, 1)
    app.kill()
    app.wait()
    app.stdout.close()
    until(lambda: not list(marked(marker_prefix(settings.data))), seconds=10)
    supervisor = Supervisor(settings)
    supervisor.start()
    try:
        job = finished(supervisor, job_id)
        assert (job.state, job.attempt) == (JobState.COMPLETED, 1)
        assert not list(settings.jobs.rglob("*.partial"))
    finally:
        supervisor.stop()


def test_cancel_ends_every_process_and_keeps_what_is_sealed(supervisor, settings, recipe):
    job_id = supervisor.submit(recipe, "me", None)
    caught(settings, 1)
    supervisor.cancel(job_id, "me")
    assert finished(supervisor, job_id).state == JobState.CANCELED
    assert not list(marked(marker_prefix(settings.data)))
    assert [path.name for path in sorted((settings.jobs / job_id / "stages").iterdir())] == ["0-fetch"]
    supervisor.retry(job_id, "me", None)
    assert finished(supervisor, job_id).state == JobState.COMPLETED


def test_a_job_that_lacks_a_login_waits_and_goes_on_with_one(supervisor, hub, tiny_model):
    commit = hub.add_model("them/gated", tiny_model, gated=True)
    hub.add_token(TOKEN, "me")
    hub.grant("them/gated", "me")
    stages = [{"stage": "quantize", "method": "cast", "dtype": "float16"}]
    recipe = parse_recipe({"base_model": "them/gated", "revision": commit, "stages": stages})
    job_id = supervisor.submit(recipe, "me", None)
    job = finished(supervisor, job_id)
    assert job.state == JobState.WAITING_FOR_LOGIN
    assert "them/gated" in job.error
    supervisor.retry(job_id, "me", TOKEN)
    assert finished(supervisor, job_id).state == JobState.COMPLETED


def test_nobody_touches_a_job_of_somebody_else(supervisor, settings, recipe):
    job_id = supervisor.submit(recipe, "me", None)
    caught(settings, 1)
    for call in (supervisor.get, supervisor.cancel, supervisor.log, supervisor.artifacts, supervisor.published):
        with pytest.raises(JobError, match="no such job"):
            call(job_id, "you")
    with pytest.raises(JobError, match="no such job"):
        supervisor.retry(job_id, "you", None)
    assert supervisor.list("you") == []
    supervisor.cancel(job_id, "me")
    assert finished(supervisor, job_id).state == JobState.CANCELED


def test_a_deleted_job_is_gone_with_what_it_made(supervisor, settings, recipe):
    job_id = supervisor.submit(recipe, "me", None)
    caught(settings, 1)
    with pytest.raises(JobError, match="cancel it first"):
        supervisor.delete(job_id, "me")
    supervisor.cancel(job_id, "me")
    finished(supervisor, job_id)
    with pytest.raises(JobError, match="no such job"):
        supervisor.delete(job_id, "you")
    supervisor.delete(job_id, "me")
    assert supervisor.list("me") == []
    assert not (settings.jobs / job_id).exists()


def test_a_publication_need_not_wait_for_a_quantization(supervisor, settings, recipe, make_artifact, tmp_path):
    busy = supervisor.submit(recipe, "me", None)
    caught(settings, 1)
    options = PublishOptions(to_folder=tmp_path / "out")
    job_id = supervisor.submit(publication(make_artifact(), options), "me", None)
    assert finished(supervisor, job_id).state == JobState.COMPLETED
    assert supervisor.published(job_id, "me")[0]["location"] == str(tmp_path / "out")
    assert supervisor.get(busy, "me").state == JobState.RUNNING
    supervisor.cancel(busy, "me")
    finished(supervisor, busy)


def test_a_second_app_on_the_same_folder_is_refused_with_the_firsts_number(supervisor, settings):
    with pytest.raises(JobError, match=rf"process {os.getpid()}"):
        Supervisor(settings).start()


def test_a_job_that_cannot_write_ends_in_words_and_the_next_one_runs(supervisor, settings, recipe):
    settings.models.write_text("in the way")
    job = finished(supervisor, supervisor.submit(recipe, "me", None))
    assert job.state == JobState.ERROR
    assert "Could not read or write" in job.error
    settings.models.unlink()
    assert finished(supervisor, supervisor.submit(recipe, "me", None)).state == JobState.COMPLETED


def test_one_person_cannot_fill_the_queue(settings, recipe):
    supervisor = Supervisor(settings.model_copy(update={"max_queued": 2}))
    supervisor.start()
    try:
        ids = [supervisor.submit(recipe, "me", None)]
        caught(settings, 1)
        ids += [supervisor.submit(recipe, "me", None) for _ in range(2)]
        with pytest.raises(JobError, match="2 jobs waiting"):
            supervisor.submit(recipe, "me", None)
        for job_id in reversed(ids):
            supervisor.cancel(job_id, "me")
        assert {finished(supervisor, job_id).state for job_id in ids} == {JobState.CANCELED}
    finally:
        supervisor.stop()


def test_a_changed_file_is_found_by_its_hash(supervisor, recipe):
    job_id = supervisor.submit(recipe, "me", None)
    finished(supervisor, job_id)
    [folder] = supervisor.artifacts(job_id, "me")
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(SpecError, match=r"'model.safetensors'.*has changed"):
        verify(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(SpecError, match="not an artifact"):
        open_artifact(folder)


def test_only_its_owner_stops_a_training_and_reads_how_it_goes(supervisor, settings):
    stages = [{"stage": "finetune", "split": "train[:20]"}]
    recipe = parse_recipe({"base_model": "demo", "stages": stages})
    store = Store(settings.data / "jobs.sqlite")
    job_id = store.add(recipe, "me")
    store.update(job_id, state=JobState.RUNNING)
    with pytest.raises(JobError, match="at no training"):
        supervisor.stop_training(job_id, "me")
    store.update(job_id, step=1)
    folder = stage_folder(settings.jobs / job_id, recipe, 1)
    draft = partial(folder)
    (draft / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    for door in (supervisor.stop_training, supervisor.stopping, supervisor.course):
        with pytest.raises(JobError):
            door(job_id, "somebody else")
    assert not supervisor.stopping(job_id, "me")
    assert supervisor.course(job_id, "me").series("loss") == [(1, 2.5)]
    supervisor.stop_training(job_id, "me")
    assert supervisor.stopping(job_id, "me")
    seal(draft, folder, Artifact(kind="adapter", stage="finetune", created=now()))
    store.finish(job_id, JobState.ERROR, "The merge failed.")
    assert supervisor.course(job_id, "me").series("loss") == [(1, 2.5)]
    supervisor.retry(job_id, "me", None)
    assert not (settings.jobs / job_id / STOP).exists()  # what is trained again is trained to its end
    store.close()


def test_the_first_interrupt_during_a_training_keeps_what_was_learned_and_any_other_cancels(tmp_path):
    heard = []
    before = signal.getsignal(signal.SIGINT)
    with stoppable(tmp_path, heard.append) as hear:
        hear({"event": "step", "index": 0, "name": "fetch"})
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        hear({"event": "step", "index": 1, "name": "finetune"})
        signal.raise_signal(signal.SIGINT)
        assert (tmp_path / STOP).exists()
        assert "Ctrl-C again to cancel" in heard[-1]["text"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_job_is_canceled_wherever_it_is_between_the_queue_and_its_first_step(settings, recipe):
    supervisor = Supervisor(settings)
    supervisor._lanes = []  # the test takes the jobs itself
    supervisor.start()
    try:
        queued, taken = (supervisor.submit(recipe, "me", None) for _ in range(2))
        supervisor.cancel(queued, "me")
        job = supervisor._next(("recipe",))
        assert job.id == taken
        supervisor.cancel(taken, "me")  # it is nobody's thread yet
        supervisor._run(job)
        assert {supervisor.get(job_id, "me").state for job_id in (queued, taken)} == {JobState.CANCELED}
        supervisor.retry(taken, "me", None)
        job = supervisor._next(("recipe",))
        supervisor._discard(taken)
        supervisor._run(job)
        assert [job.id for job in supervisor.list("me")] == [queued]
        assert not (settings.jobs / taken).exists()
    finally:
        supervisor.stop()
