"""Rewriting weights in another format tensor by tensor, piece by piece: a few megabytes at a time, whatever their size.

The pieces of a tensor are read, computed and written by a few threads, each of which spends its time outside of Python.
"""

import hashlib
from threading import Lock
from typing import Protocol

from backend.progress import Report
from backend.weights.checkpoint import Weights
from backend.weights.output import Output
from backend.weights.plan import Form, Plan
from backend.weights.view import Source
from backend.weights.writer import INDEX, Writer, index


class Format(Form, Protocol):
    """How a method writes a tensor that it sees alone."""

    def write(self, source: Source, writer: Writer) -> None:
        """Write what a tensor becomes."""


def rewrite(weights: Weights, output: Output, planned: Plan, changed: Format | None, report: Report) -> None:
    """Write weights and their index as planned, shard by shard; shards that are there already are left.

    Args:
        weights: The model's.
        output: Where they go.
        planned: What becomes of them.
        changed: Writes the tensors that the plan does not leave as they are; None where it leaves them all.
        report: Receives the bytes read.

    Raises:
        SpecError: A tensor holds numbers that are not finite, or lies beyond the end of its file.
    """
    output.plan(_description(weights, planned))
    total = sum(view.tensor.bytes for part in planned.parts for view, _ in part.work)
    done, lock = 0, Lock()

    def tell(n: int) -> None:
        nonlocal done
        with lock:
            done += n
            report.progress("writing weights", done, total, "bytes")

    plain = planned.plain
    for part in planned.parts:
        writer = None if output.has(part.shard.file) else Writer(output, part.shard)
        for view, form in part.work:
            if writer:
                written = plain if form is plain or changed is None else changed
                written.write(Source(view.tensor, view.dtype, view.turned, weights, tell), writer)
            else:
                tell(view.tensor.bytes)
            weights.release(view.tensor)
        if writer:
            writer.close()
    output.settle()
    content = index(planned.shards, planned.parameters, sum(output.finished.values()))
    if content:
        (output.folder / INDEX).write_bytes(content)


def _description(weights: Weights, planned: Plan) -> str:
    """Return a hash that differs where what is written would."""
    text = repr((weights.identity, planned.files, [part.work for part in planned.parts]))
    return hashlib.sha256(text.encode()).hexdigest()
