"""Parquet, read by a process of its own, whose memory bounds what a file unpacks to.

A page of 28 kB can hold a cell of 900 MB, and neither the footer nor a page's head need say so truly: what reads a file
finds out by doing it. `python -m backend.processes.parquet` is that process; it writes Arrow's stream format.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from backend.processes.child import ROOT, environment

MEMORY = 1_000_000_000
"""Bytes that the process may take; a page of 1,024 texts of 100 kB, as pyarrow writes them, takes a fifth."""

MAX_FOOTER = 32_000_000  # bytes; thousands of row groups fit
MAX_BATCH = 32_000_000  # bytes of rows that are handed over at a time, where several fit

_TOO_MUCH, _DAMAGED = 3, 4  # exit codes
_SIZE = b"size"


class Batch(NamedTuple):
    """Rows that follow each other."""

    rows: Any  # pyarrow.RecordBatch
    too_large: int  # bytes of the row that stands in their place and is not handed over; 0 where none does


def read_schema(path: Path) -> tuple[Any, int]:
    """Return the columns of a file, as Arrow's schema with the types that are handed over, and its number of rows.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: It is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        if int.from_bytes(file.read(4), "little") > MAX_FOOTER:
            raise ValueError("The footer is too long.")
    with pq.ParquetFile(path) as parquet:
        schema = pa.schema([(field.name, _plain(field.type)) for field in parquet.schema_arrow])
        return schema, int(parquet.metadata.num_rows)


def read_batches(path: Path, columns: Sequence[str], rows: int, largest: int) -> Iterator[Batch]:
    """Read the rows of a file.

    Args:
        path: The file.
        columns: That are read.
        rows: At a time, at most.
        largest: Bytes of a row; a larger one is counted, not handed over.

    Raises:
        MemoryError: It unpacks to more than MEMORY at a time.
        OSError, pyarrow.ArrowException: It is damaged.
    """
    import pyarrow as pa

    alone = {"ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "backend.processes.parquet"],
        env=environment(path.parent, online=False) | alone,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        try:
            assert process.stdin
            assert process.stdout
            with suppress(BrokenPipeError), process.stdin as asked:
                asked.write(json.dumps([str(path.resolve()), list(columns), rows, largest, MEMORY]).encode())
            try:
                yield from _received(pa.ipc.open_stream(process.stdout))
            except (pa.ArrowException, OSError):
                if process.wait() != _DAMAGED:
                    raise MemoryError(path.name) from None
                raise
            if code := process.wait():
                raise MemoryError(path.name) if code != _DAMAGED else OSError(path.name)
        finally:
            process.kill()


def _received(stream: Any) -> Iterator[Batch]:
    while True:
        try:
            batch, told = stream.read_next_batch_with_custom_metadata()
        except StopIteration:
            return
        yield Batch(batch, int(told[_SIZE]) if told else 0)


def main() -> int:
    """Write the rows that standard input asks for to standard output."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, columns, rows, largest, memory = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    try:
        # Pages are read as they come: a column of a row group can have gigabytes.
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as parquet:
            kept = [name for name in parquet.schema_arrow.names if name in set(columns)]
            schema = pa.schema([(name, _plain(parquet.schema_arrow.field(name).type)) for name in kept])
            with pa.ipc.new_stream(sys.stdout.buffer, schema) as out:
                for batch in parquet.iter_batches(rows, columns=columns, use_threads=False):
                    _hand_over(batch.select(kept).cast(schema), largest, out)
    except MemoryError:  # pyarrow's own is one, too
        return _TOO_MUCH
    except (pa.ArrowException, OSError, ValueError):
        return _DAMAGED
    return 0


def _plain(kind: Any) -> Any:
    """Return a type without dictionaries and extensions, which are texts or bytes by another name.

    Of a text that is there a thousand times a dictionary hides how large that is.
    """
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(kind.storage_type)
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _plain(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain(kind.value_type), kind.list_size)
    return pa.large_list(_plain(kind.value_type)) if pa.types.is_large_list(kind) else kind


def _hand_over(batch: Any, largest: int, out: Any) -> None:
    if batch.nbytes <= MAX_BATCH and batch.nbytes <= largest * batch.num_rows:
        out.write_batch(batch)
        return
    for i in range(batch.num_rows):
        row = batch.slice(i, 1)
        if row.nbytes <= largest:
            out.write_batch(row)
        else:
            out.write_batch(batch.slice(i, 0), {_SIZE: str(row.nbytes).encode()})


if __name__ == "__main__":
    sys.exit(main())
