"""Files: the names, sizes and bytes of a model, the same for a local folder and for a Hub repo at one commit."""

import os
from pathlib import Path
from typing import NamedTuple, Protocol

from backend.errors import HubError, SpecError
from backend.strict_json import quoted

MAX_ENTRIES = 10_000


class Entry(NamedTuple):
    """One file."""

    name: str  # with slashes, relative
    size: int  # bytes
    sha256: str | None = None  # of files in LFS
    git_sha1: str | None = None  # of all others on the Hub
    link: bool = False  # a symbolic link


class Files(Protocol):
    """Where a model's files are read from before they are trusted."""

    def entries(self) -> tuple[Entry, ...]:
        """List every file, sorted by name."""

    def read(self, name: str, start: int, end: int) -> bytes:
        """Return the bytes of a listed file from `start` to before `end`, or to its end if that comes first."""


class LocalFiles:
    """The files of a local folder; `.git` and `.cache` are not looked into."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entries(self) -> tuple[Entry, ...]:
        """List every file and symbolic link."""
        found: list[Entry] = []
        for at, folders, names in os.walk(self.folder):
            links = [name for name in folders if Path(at, name).is_symlink()]
            folders[:] = [name for name in folders if name not in (".git", ".cache", *links)]
            found += [self._entry(Path(at, name)) for name in (*names, *links)]
            if len(found) > MAX_ENTRIES:
                raise SpecError(
                    f"{quoted(self.folder.name)} holds more than {MAX_ENTRIES} files: give the model's own folder."
                )
        return tuple(sorted(found))

    def _entry(self, path: Path) -> Entry:
        stat = path.lstat()
        return Entry(path.relative_to(self.folder).as_posix(), stat.st_size, link=path.is_symlink())

    def read(self, name: str, start: int, end: int) -> bytes:
        """Read a part of a file."""
        try:
            with (self.folder / name).open("rb") as f:
                f.seek(start)
                return f.read(max(0, end - start))
        except OSError as e:
            raise SpecError(f"Could not read {quoted(name)}. {e.strerror}: check the file.") from e


class HubFiles:
    """The files of a Hub repo at one commit.

    Args:
        repo_id: The model, or data set.
        commit: 40 hex digits.
        token: The caller's Hub token; None asks anonymously.
        repo_type: model or dataset.
    """

    def __init__(self, repo_id: str, commit: str, token: str | None, repo_type: str = "model") -> None:
        self.repo_id = repo_id
        self.commit = commit
        self.token = token
        self.repo_type = repo_type
        self._entries: tuple[Entry, ...] | None = None

    def entries(self) -> tuple[Entry, ...]:
        """List every file; the Hub is asked once."""
        if self._entries is None:
            from backend.hub import client

            listed = client.list_files(self.repo_id, self.commit, self.token, self.repo_type)
            self._entries = tuple(
                sorted(
                    Entry(f.path, f.size, f.lfs.sha256 if f.lfs else None, None if f.lfs else f.blob_id) for f in listed
                )
            )
        return self._entries

    def read(self, name: str, start: int, end: int) -> bytes:
        """Fetch a range of a file."""
        size = next((entry.size for entry in self.entries() if entry.name == name), None)
        if size is None:
            raise HubError(f"{quoted(name)} is not in '{self.repo_id}' any more: look the model up again.")
        end = min(end, size)
        if start >= end:
            return b""
        from backend.hub import client

        data = client.read_range(self, name, start, end)
        if len(data) != end - start:
            raise HubError(
                f"The Hub sent {len(data)} bytes of {quoted(name)} in '{self.repo_id}' where {end - start} were asked"
                " for: try again."
            )
        return data


class PartlyHere(HubFiles):
    """The files of a Hub repo, of which some lie in a folder and are read there."""

    def __init__(self, files: HubFiles, folder: Path) -> None:
        super().__init__(files.repo_id, files.commit, files.token)
        self._folder = LocalFiles(folder)
        sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
        self._entries = tuple(entry._replace(size=sizes.get(entry.name, entry.size)) for entry in files.entries())

    def read(self, name: str, start: int, end: int) -> bytes:
        """Read a range of a file, or fetch it."""
        here = (self._folder.folder / name).is_file()
        return self._folder.read(name, start, end) if here else super().read(name, start, end)
