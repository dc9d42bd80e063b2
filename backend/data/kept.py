"""Kept samples: rows are parsed and checked once, and whatever comes after reads what was found sound."""

import marshal
import os
import tempfile
from array import array
from collections.abc import Iterator

from backend.data.samples import Message, Sample


class Kept:
    """Samples in the order of their rows, in a file without a name, which goes with the process.

    Nobody else reads or writes the file, so that the fastest format there is will do.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the samples are asked for
        self._sizes = array("Q")  # in bytes, of each sample

    def add(self, sample: Sample) -> None:
        """Write a sample behind the others."""
        messages = tuple(tuple(message) for message in sample.messages)
        written = marshal.dumps((sample.row, messages, sample.text, sample.prompt, sample.tools))
        self._file.write(written)
        self._sizes.append(len(written))

    def read(self) -> Iterator[Sample]:
        """Yield the samples; several may read at the same time."""
        self._file.flush()
        place = 0
        for size in self._sizes:
            row, messages, text, prompt, tools = marshal.loads(os.pread(self._file.fileno(), size, place))
            place += size
            yield Sample(row, tuple(Message(*message) for message in messages), text, prompt, tools)
