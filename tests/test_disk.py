"""Scratch: what a killed process has left goes, what another one works in stays."""

import signal
import subprocess
import sys
from pathlib import Path

from backend.disk import PREFIX, clear, scratch
from backend.processes.child import ROOT

WORKS = (
    "import sys; from pathlib import Path; from backend.disk import scratch\n"
    "with scratch(Path(sys.argv[1])) as folder:\n"
    "    (folder / 'half.safetensors').write_bytes(b'half'); print(folder, flush=True); sys.stdin.read()"
)


def working(place: Path) -> tuple[subprocess.Popen[str], Path]:
    """Start a process that works in a folder until its input ends."""
    command = [sys.executable, "-c", WORKS, str(place)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_goes_with_the_next_and_what_is_in_use_stays(tmp_path: Path) -> None:
    (killed, left), (alive, used) = working(tmp_path), working(tmp_path)
    with killed, alive:
        killed.kill()
        assert killed.wait() == -signal.SIGKILL
        assert (left / "half.safetensors").is_file()
        with scratch(tmp_path) as mine:
            assert sorted(tmp_path.iterdir()) == sorted([used, mine])
        clear(tmp_path)
        assert list(tmp_path.glob(f"{PREFIX}*")) == [used]
        alive.communicate()
    assert not any(tmp_path.iterdir())


def test_what_is_renamed_stays(tmp_path: Path) -> None:
    with scratch(tmp_path) as folder:
        (folder / "whole.txt").write_text("whole")
        folder.rename(tmp_path / "done")
    assert [path.name for path in tmp_path.rglob("*")] == ["done", "whole.txt"]
