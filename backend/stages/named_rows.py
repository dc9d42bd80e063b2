"""Rows that a stage names beside those that are trained on: read early where they lie here, else pinned; fetched."""

from pathlib import Path
from tempfile import TemporaryDirectory

from backend.data.options import DatasetOptions, RowsOptions, is_file
from backend.options import faults_of
from backend.progress import Report, silent


def pin_rows(rows: RowsOptions, field: str, token: str | None) -> RowsOptions:
    """Read rows of this machine, so that what they ask is asked now, or pin a data set to its commit.

    Args:
        rows: As a stage names them.
        field: Of the stage that holds them, for faults.
        token: The caller's Hub token.

    Raises:
        SpecError: They cannot be used, or leave a question open.
        HubError: There is no such data set, or the Hub could not be reached.
    """
    from backend.data.examine import load
    from backend.data.fetch import fetch_dataset, pin

    read = DatasetOptions.all_of(rows)
    if is_file(rows.dataset):
        with TemporaryDirectory() as folder, faults_of(field):
            load(fetch_dataset(read, Path(folder), token, silent()).train, read)
    return rows.model_copy(update={"revision": pin(read, token).revision})


def fetch_rows(rows: RowsOptions, field: str, place: Path, token: str | None, report: Report) -> None:
    """Bring rows.

    Args:
        rows: As a stage names them.
        field: Of the stage that holds them, for faults.
        place: The folder that they and their description are written to; it is made.
        token: The caller's Hub token.
        report: Receives the bytes.

    Raises:
        SpecError: There is no such config or split; what there is instead.
    """
    from backend.data.fetch import fetch_dataset, write_sources

    place.mkdir()
    with faults_of(field):
        write_sources(place, fetch_dataset(DatasetOptions.all_of(rows), place, token, report))
