"""Child processes: heard, stopped, and never left behind."""

import os
import signal
import subprocess
import sys

import pytest

from backend.processes.child import ROOT, Child, Hearing, Silent, environment, killed, mask
from backend.processes.marks import MARKER, marked, marker_prefix, sweep
from tests.support.processes import linux, until

SECRET = "hf_" + "a" * 30


def start(tmp_path, code, **kwargs):
    env = environment(tmp_path, online=False)
    return Child([sys.executable, "-c", code], env, tmp_path, tmp_path / "log.txt", **kwargs)


def alive(tmp_path):
    return list(marked(marker_prefix(tmp_path)))


def test_events_are_heard_and_other_output_is_not(tmp_path):
    events = []
    code = 'print(\'noise\'); print(\'{"event": "log", "text": "hello"}\')'
    assert start(tmp_path, code, on_event=events.append).wait(20) == 0
    assert events == [{"event": "log", "text": "hello"}]


def test_a_token_comes_on_standard_input_and_nowhere_else(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("OAUTH_CLIENT_SECRET", SECRET)
    events = []
    code = (
        "import json, os, sys; token = json.loads(sys.stdin.readline())['token'];"
        "print(json.dumps({'event': 'log', 'given': len(token), 'argv': token in str(sys.argv),"
        " 'environ': token in str(dict(os.environ))})); print(token, file=sys.stderr)"
    )
    start(tmp_path, code, on_event=events.append, token=SECRET).wait(20)
    assert events == [{"event": "log", "given": len(SECRET), "argv": False, "environ": False}]
    assert SECRET not in (tmp_path / "log.txt").read_text()
    assert "•••" in (tmp_path / "log.txt").read_text()


def test_a_child_inherits_what_the_machine_needs_and_no_variable_beyond(tmp_path, monkeypatch):
    needed = ("PATH", "LC_ALL", "TZ", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "NCCL_DEBUG",
              "VLLM_CPU_KVCACHE_SPACE", "WEIGHTSMITH_NUM_PROCESSES", "MASTER_ADDR", "CC", "CPLUS_INCLUDE_PATH",
              "CONDA_PREFIX", "PYTHONUSERBASE", "PYTHONNOUSERSITE", "GPU_DEVICE_ORDINAL", "NCCL_IB_PKEY")  # fmt: skip
    secret = ("PGPASSFILE", "NPM_AUTH", "SENTRY_DSN", "AZURE_CONNECTION_STRING", "KUBECONFIG", "LC_GITHUB_PAT",
              "WEIGHTSMITH_PASSWORD", "VLLM_API_KEY", "WEIGHTSMITH_OTHER", "TORCH_AUTH", "http_proxy",
              "HF_ENDPOINT")  # fmt: skip
    for name in (*needed, *secret):
        monkeypatch.setenv(name, "canary")
    monkeypatch.setenv("CUDA_HOME", SECRET)
    offline, online = (environment(tmp_path, online=online) for online in (False, True))
    assert [name for name in needed if offline.get(name) != "canary"] == []
    assert [name for name in (*secret, "CUDA_HOME") if name in offline] == []
    assert {name for name in secret if name in online} == {"http_proxy", "HF_ENDPOINT"}


def test_a_line_without_an_end_is_masked_and_kept_in_pieces(tmp_path):
    child = start(tmp_path, f"import sys; [sys.stdout.write('eyJ' * 40_000) for _ in range(80)]; print('\\n{SECRET}')")
    assert child.wait(60) == 0
    written = [path.read_text() for path in tmp_path.glob("log*")]
    assert max(map(len, written)) < 5_200_000
    assert SECRET not in "".join(written)


def test_the_exit_code_tells_the_signal(tmp_path):
    assert start(tmp_path, "import os; os.kill(os.getpid(), 9)").wait(20) == 128 + signal.SIGKILL


@linux
def test_stop_ends_grandchildren_also_those_that_left_the_group(tmp_path):
    code = (
        "import subprocess, sys, time;"
        "deaf = 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(99)';"
        "sleep = [sys.executable, '-c', deaf];"
        "subprocess.Popen(sleep); subprocess.Popen(sleep, start_new_session=True); time.sleep(99)"
    )
    child = start(tmp_path, code)
    until(lambda: len(alive(tmp_path)) == 4, 10)
    child.stop(0.5)
    until(lambda: not alive(tmp_path), 10)


@linux
def test_a_killed_app_leaves_nothing_running(tmp_path):
    app = (
        "import sys, time; from pathlib import Path; from backend.processes.child import *;"
        f"home = Path({str(tmp_path)!r});"
        "Child([sys.executable, '-c', 'import time; time.sleep(99)'], environment(home, False), home, home / 'log');"
        "time.sleep(99)"
    )
    process = subprocess.Popen([sys.executable, "-c", app], cwd=ROOT)
    until(lambda: len(alive(tmp_path)) == 2, 10)
    process.kill()
    process.wait()
    until(lambda: not alive(tmp_path), 10)


@linux
@pytest.mark.parametrize("obeys", [True, False])
def test_a_killed_app_leaves_no_grandchildren_that_ignore_it_or_left_the_group(tmp_path, obeys):
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    code = (
        f"{'import time' if obeys else deaf}; import subprocess, sys; from pathlib import Path;"
        f"sleep = [sys.executable, '-c', {deaf!r} + '; print(flush=True); time.sleep(99)'];"
        "start = lambda **more: subprocess.Popen(sleep, stdout=subprocess.PIPE, **more);"
        "[process.stdout.readline() for process in (start(), start(start_new_session=True))];"
        f"Path({str(tmp_path / 'ready')!r}).touch(); time.sleep(99)"
    )
    app = (
        "import sys, time; from pathlib import Path; from backend.processes.child import *;"
        f"home = Path({str(tmp_path)!r});"
        f"Child([sys.executable, '-c', {code!r}], environment(home, False), home, home / 'log');"
        "time.sleep(99)"
    )
    process = subprocess.Popen([sys.executable, "-c", app], cwd=ROOT)
    until((tmp_path / "ready").exists, 10)
    process.kill()
    process.wait()
    until(lambda: not alive(tmp_path), 10)


@linux
def test_the_sweep_kills_what_bears_the_folders_mark_and_nothing_else(tmp_path):
    def sleeper(folder):
        env = {**os.environ, MARKER: marker_prefix(folder) + "x"}
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"], env=env)

    ours, other = sleeper(tmp_path), sleeper(tmp_path / "other")
    until(lambda: len(alive(tmp_path)) == 1, 10)
    assert sweep(marker_prefix(tmp_path)) == 1
    assert ours.wait(10) == -signal.SIGKILL
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_flood_of_output_does_not_fill_the_disk(tmp_path):
    child = start(tmp_path, "for i in range(250_000): print('x' * 60)")
    assert child.wait(60) == 0
    assert sum(path.stat().st_size for path in tmp_path.glob("log*")) < 11_000_000


@pytest.mark.parametrize("secret", [SECRET, "Bearer abc.def", "eyJhbGciOiJI.eyJzdWIiOiIx.abcdefghij"])
def test_what_looks_like_a_token_is_masked(secret):
    assert secret not in mask(f"before {secret} after")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device is full here")
def test_a_child_whose_log_cannot_be_written_is_heard_to_its_end(tmp_path):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    events = []
    code = (
        # more than a pipe holds
        "import sys; [sys.stderr.write('x' * 99 + chr(10)) for _ in range(5000)]; sys.stderr.flush();"
        'print(\'{"event": "log", "text": "done"}\')'
    )
    child = start(tmp_path, code, on_event=events.append)
    try:
        assert child.wait(20) == 0
    finally:
        child.stop(0)
    assert events == [{"event": "log", "text": "done"}]


def test_a_child_that_is_not_wanted_any_more_is_ended_with_what_it_started(tmp_path):
    def unwanted():
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        start(tmp_path, "import time; time.sleep(600)").attend(1, unwanted)
    assert not alive(tmp_path)


def test_a_child_that_says_nothing_any_more_is_ended(tmp_path):
    with pytest.raises(Silent):
        start(tmp_path, "import time; time.sleep(600)").attend(1, lease=0)
    assert not alive(tmp_path)


def test_of_what_a_worker_says_its_first_error_is_kept_and_signs_of_life_are_dropped(tmp_path):
    told = []
    heard = Hearing(told.append)
    events = [{"event": kind, "text": kind + str(at)} for at, kind in enumerate(["log", "beat", "error", "error"])]
    code = f"import json; [print(json.dumps(event)) for event in {events!r}]; raise SystemExit(3)"
    assert start(tmp_path, code, on_event=heard).attend(1) == 3
    assert (told, heard.error) == (events[:1], events[2])


def test_the_end_by_a_signal_is_put_into_words():
    assert killed("The step 'x'", signal.SIGKILL).startswith(
        "The step 'x' was killed by the system, most likely out of"
    )
    assert killed("The step 'x'", signal.SIGTERM) == "The step 'x' was ended by SIGTERM."
