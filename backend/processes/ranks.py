"""Several processes for one step of a job: `accelerate launch` starts the worker once a GPU; they are heard as one.

Each process ("rank", as torch.distributed calls it) learns from batches of its own, so that one optimizer step sees
N processes x per_device_train_batch_size x gradient_accumulation_steps rows, as with TRL.
"""

import ctypes
import math
import os
import signal
import sys
from pathlib import Path

import yaml

from backend.errors import JobError
from backend.machine.hardware import gpus, torch_threads
from backend.processes.child import Child, Hearing, last_words
from backend.progress import Report
from backend.settings import Settings

RANK = "rank"
"""The worker's third argument in a process that accelerate has started."""

STOP_SECONDS = 5.0

ATTEMPTS = 2
"""How often the processes are started when one ends without saying why: a port, or a GPU's link, may be lost once."""

_PR_SET_PDEATHSIG = 1


def processes(settings: Settings) -> int:
    """Return the number of processes that a training takes: as its owner says, else one for each GPU."""
    if settings.accelerate_config:
        config = yaml.safe_load(settings.accelerate_config.read_text(encoding="utf-8"))
        return int(config.get("num_processes", 1))
    return settings.num_processes or max(1, len(gpus()))


def rank() -> int:
    """Return the number of this process among those of its step: 0 where it is alone, or speaks for them."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return how many processes do this step together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def die_with_the_launcher() -> None:
    """Have the kernel kill this process when accelerate ends, however: torch has given it a session of its own."""
    launcher = os.getppid()
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl and (prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0 or os.getppid() != launcher):
        sys.exit(128 + signal.SIGKILL)


def launch(job: Path, index: int, settings: Settings, report: Report) -> None:
    """Do one step in several processes.

    Args:
        job: The folder, on a disk that all machines see where there are several.
        index: Of the step.
        settings: Say how many processes, or where accelerate's own configuration lies.
        report: Receives what the first of them says.

    Raises:
        JobError: One of them failed.
    """
    number = processes(settings)
    command = [sys.executable, "-m", "accelerate.commands.launch", *_flags(settings, number)]
    command += ["--module", "backend.jobs.worker", str(job), str(index), RANK]
    report.log(f"Training in {number} processes.")
    if settings.accelerate_config:
        words = " ".join(["accelerate launch --config_file ITS_OWN", *command[-5:]])
        report.log(f"Each further machine of the accelerate configuration has to run, in the app's folder: {words}")
    for again in range(ATTEMPTS):
        heard = Hearing(report.relay)
        # without a lease: this process gives the signs of life for all of them
        code = Child(command, os.environ, job, job / "log.txt", heard).attend(STOP_SECONDS, lease=math.inf)
        if heard.error:
            raise JobError(heard.error["text"])
        if not code:
            return
        report.log(last_words(job / "log.txt"))
        if again + 1 < ATTEMPTS:
            report.log("A training process ended without a word: all are started again, from the last checkpoint.")
    raise JobError(
        f"One of the {number} training processes was ended from outside, or failed unexpectedly, {ATTEMPTS} times: the"
        " end of the log says why; a retry goes on from the last checkpoint."
    )


def _flags(settings: Settings, number: int) -> list[str]:
    if settings.accelerate_config:
        return ["--config_file", str(settings.accelerate_config.resolve())]
    # "multi_gpu" is how accelerate calls torch's launcher; on a CPU the processes talk through gloo.
    flags = ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    flags += ["--num_processes", str(number), "--main_process_port", "0"]
    return [*flags, "--num_cpu_threads_per_process", str(max(1, torch_threads() // number))]
