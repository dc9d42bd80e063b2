"""Child processes on this machine: started through the shim, heard through pipes, ended with all their descendants."""

import contextlib
import json
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import backend
from backend.errors import JobError
from backend.machine.hardware import memory_bytes
from backend.processes.marks import MARKER, marker_prefix, resident_bytes, sweep
from backend.settings import PREFIX, Settings

ROOT = Path(backend.__file__).resolve().parent.parent
LEASE = 60.0  # seconds without a sign of life after which a worker counts as stuck
NICENESS = 5  # of a worker: the page stays quick while it takes every core
LOOK = 0.1  # seconds between two looks at whether a worker is to be stopped
LAST_WORDS = 15  # lines of a child's own output that are shown when it failed in a way nobody foresaw
LOG_BYTES = 5_000_000  # of the log file; the one before it is kept, so a flood costs twice this

_LINE = 1 << 16  # bytes that are looked through for tokens at a time; a line may be longer

# One start a word, and none where no dots follow: a word of which each letter could begin a token is read once.
_JWT = r"(?<![\w-])(?=[\w-]+\.[\w-]{8,}\.[\w-]{8,})[\w-]*?eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}"
_SECRET_TEXT = re.compile(rf"hf_[A-Za-z0-9]{{20,}}|api_org_[A-Za-z0-9]{{20,}}|Bearer\s+\S+|{_JWT}", re.IGNORECASE)

_SETTINGS = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
_MACHINE = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_(ALL|[A-Z]*(CTYPE|COLLATE|MESSAGES|MONETARY|NUMERIC|TIME))|TZ|TMPDIR|TMP|TEMP|XDG_(CACHE_HOME|RUNTIME_DIR)|VIRTUAL_ENV|SYSTEM"
    r"|SPACE_(ID|HOST|AUTHOR_NAME)|(DY)?LD_\w*LIBRARY_PATH|LD_PRELOAD|__CF_USER_TEXT_ENCODING|SYSTEMROOT|WINDIR"
    r"|PYTHON(HASHSEED|UTF8|IOENCODING|WARNINGS|FAULTHANDLER|DONTWRITEBYTECODE|MALLOC|USERBASE|NOUSERSITE)|MALLOC_\w+|GLIBC_TUNABLES"
    r"|(OMP|GOMP|KMP|MKL|OPENBLAS|BLIS|ONEDNN|DNNL|NUMEXPR|NUMBA|RAYON)_\w+"
    r"|(TORCH|TORCHINDUCTOR|PYTORCH|TRITON|ACCELERATE|BNB|BITSANDBYTES|VLLM|PEFT)_\w+"
    r"|(CUDA|CUDNN|CUBLAS|NVIDIA|NVTE|NCCL|GLOO|UCX|FI|ROCR|ROCM|HIP|HSA|AMD|MIOPEN|ROCBLAS|RCCL)_\w+|GPU_DEVICE_ORDINAL|MASTER_(ADDR|PORT)"
    r"|CC|CXX|CPATH|LIBRARY_PATH|C(PLUS)?_INCLUDE_PATH|CONDA_PREFIX"
    rf"|{'|'.join(_SETTINGS)}"
)
"""What Python, torch and the drivers of this machine ask for. No list of secrets is whole; this one is."""

_ONLINE = re.compile(
    r"(https?|all|no|ftp)_proxy|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|HF_ENDPOINT|HF_(HUB|XET)_\w+",
    re.IGNORECASE,
)
"""What leads to the Hub besides."""

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASS|PWD|(?<!_IB_P)KEY|CREDENTIAL|AUTH(?!OR)|COOKIE")
"""Names that are never handed on, whoever's they are."""


def environment(home: Path, online: bool) -> dict[str, str]:
    """Return a child's environment: what this machine needs, no token, a Hub cache of its own, and no way to the Hub
    where it has none to take.

    Args:
        home: A folder of the app; the child finds no `hf auth login` of the user there.
        online: Whether the child talks to the Hub.
    """
    known = {
        name: value
        for name, value in os.environ.items()
        if _MACHINE.fullmatch(name) or (online and _ONLINE.fullmatch(name))
    }
    env = {
        name: value
        for name, value in known.items()
        if not (_SECRET_NAME.search(name.upper()) or _SECRET_TEXT.search(value))
    }
    env |= {
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_WAIT_POLICY": "PASSIVE",  # waiting in a loop halves torch's speed where a core is busy
        "OPENBLAS_THREAD_TIMEOUT": "4",  # so do the threads of NumPy, for 0.1 s once it is imported
        "SPT_NOENV": "1",  # vLLM gives its engine a title, which setproctitle would write over the marker
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(ROOT),
    }
    if not online:
        env["HF_HUB_OFFLINE"] = "1"
    return env


def mask(text: str, tokens: Iterable[str] = ()) -> str:
    """Replace whatever looks like a token, and the given ones, before a line reaches the disk."""
    for token in tokens:
        text = text.replace(token, "•••")
    return _SECRET_TEXT.sub("•••", text)


def _ends_within(process: "subprocess.Popen[bytes]", seconds: float | None) -> bool:
    """Wait for a process; subprocess looks only each 50 ms, which a command of a second feels."""
    try:
        end = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # another system than Linux, or it has ended already
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        return process.poll() is not None
    try:
        watched = select.poll()
        watched.register(end, select.POLLIN)
        watched.poll(None if seconds is None else 1000 * seconds)
    finally:
        os.close(end)
    return process.poll() is not None


def last_words(log: Path) -> str:
    """Return the end of a log: what explains an end that nobody expected."""
    try:
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_WORDS:])
    except OSError:
        return "The log could not be written."


def killed(what: str, number: int) -> str:
    """Say by which signal something was ended, and what to do.

    Args:
        what: Begins the sentence, such as "The step 'merge'".
        number: Of the signal.
    """
    if number == signal.SIGKILL:
        memory = memory_bytes() / 2**30
        return (
            f"{what} was killed by the system, most likely out of memory ({memory:.0f} GiB in all): close other"
            " programs or choose a smaller model."
        )
    return f"{what} was ended by {signal.Signals(number).name}."


class Silent(JobError):
    """A worker gave no sign of life for LEASE, and was stopped."""

    def __init__(self) -> None:
        super().__init__(f"gave no sign of life for {LEASE:.0f} s and was stopped")


class Hearing:
    """Hears a worker: the error that it ends with is kept, signs of life are dropped, all else is passed on.

    Args:
        tell: Takes every other event.
    """

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        self._tell = tell
        self.error: dict[str, Any] | None = None

    def __call__(self, event: dict[str, Any]) -> None:
        """Take an event."""
        if event["event"] == "error":
            self.error = self.error or event
        elif event["event"] != "beat":
            self._tell(event)


class Child:
    """A command that runs until it ends, stop() is called, or this process dies.

    Args:
        command: Program and arguments; no secrets, any user of the machine can read them.
        env: Its whole environment, from environment().
        home: The folder that it works for, see marker_prefix().
        log: Where its standard error goes, masked and capped; and its standard output if nobody listens to it.
        on_event: Called in a thread with each JSON object that it prints.
        token: Given to it on its standard input as one line of JSON; in no other way.
    """

    def __init__(
        self,
        command: list[str],
        env: Mapping[str, str],
        home: Path,
        log: Path,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        token: str | None = None,
    ) -> None:
        # A child of a child bears its parent's mark first, so that whoever sweeps after the parent finds it.
        self._mark = os.environ.get(MARKER, marker_prefix(home)) + secrets.token_hex(8)
        self._tokens = [token] if token else []
        self._ended = threading.Lock()
        self._heard = time.monotonic()
        death, self._life = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "backend.processes.shim", str(death), *command],
                env={**env, MARKER: self._mark},
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if on_event else subprocess.STDOUT,
                pass_fds=[death],
                start_new_session=True,
            )
        finally:
            os.close(death)
        self._threads = [threading.Thread(target=self._pump, args=(log,), daemon=True)]
        if on_event:
            self._threads.append(threading.Thread(target=self._listen, args=(on_event,), daemon=True))
        for thread in self._threads:
            thread.start()
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(json.dumps({"token": token}).encode())

    def resident_bytes(self) -> int:
        """Return the memory of it and of everything that it started."""
        return resident_bytes(self._mark)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the command; None if it still runs after `timeout` seconds, 128 + n if signal n ended it."""
        if not _ends_within(self._process, timeout):
            return None
        self._finish()
        return self._process.returncode

    def attend(self, grace: float, check: Callable[[], object] = lambda: None, lease: float = LEASE) -> int:
        """Wait for the command, and end whatever it started; return its exit code as wait() does.

        Args:
            grace: Seconds that it may take to end by itself, where it must.
            check: Called again and again; what it raises ends the command.
            lease: Seconds without an event after which it counts as stuck.

        Raises:
            Silent: It got stuck.
        """
        try:
            while (code := self.wait(LOOK)) is None:
                check()
                if time.monotonic() - self._heard > lease:
                    raise Silent
            return code
        finally:
            self.stop(grace)

    def stop(self, grace: float) -> None:
        """End it: SIGTERM to the group, after `grace` seconds SIGKILL, then whatever still bears its mark."""
        for by, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, None)):
            if self._process.poll() is None:
                with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):  # gone meanwhile, or not yet
                    os.killpg(self._process.pid, by)
                    self._process.wait(seconds)
        self._finish()

    def _finish(self) -> None:
        if not self._ended.acquire(blocking=False):
            return
        sweep(self._mark)
        for thread in self._threads:
            thread.join(5)
        with contextlib.suppress(OSError):
            os.close(self._life)

    def _listen(self, on_event: Callable[[dict[str, Any]], None]) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # a library's print; the log is for those
            if isinstance(event, dict):
                self._heard = time.monotonic()
                on_event(event)

    def _pump(self, log: Path) -> None:
        source = self._process.stderr or self._process.stdout
        assert source
        out = None
        while line := source.readline(_LINE):
            with contextlib.suppress(OSError):  # a full disk: read on, or the child would wait for ever to be heard
                if out and out.tell() > LOG_BYTES:
                    out.close()
                    log.replace(log.with_suffix(".old.txt"))
                if out is None or out.closed:
                    out = log.open("ab", buffering=0)
                out.write(mask(line.decode(errors="replace"), self._tokens).encode())
        if out:
            out.close()
