"""Push: an artifact goes to a folder, or to a repo on the Hub in one commit that is read back."""

import shutil
from pathlib import Path

from backend.artifacts.sealing import open_artifact, verify
from backend.disk import fsync, scratch, sha256
from backend.errors import HardwareError, SpecError
from backend.hub.patience import long_patience
from backend.progress import Report
from backend.publish.adopt import as_artifact
from backend.publish.destination import check_folder, check_outside, check_token
from backend.publish.files import OutgoingFile, outgoing
from backend.publish.options import PublishOptions
from backend.publish.repo import Published, Repo
from backend.publish.weights_check import check_weights
from backend.settings import load_settings


def publish(folder: Path, options: PublishOptions, token: str | None, report: Report) -> Published:
    """Publish a folder: weights, card, recipe and manifest.

    Args:
        folder: A sealed artifact, or a folder made elsewhere, of which one is made for the while.
        options: Where it goes.
        token: Of whom publishes; a local folder needs none.
        report: Receives the bytes sent.

    Raises:
        SpecError: The artifact has changed, must not leave or did not pass its check, or the destination is taken.
        LoginError: The Hub wants a token, or a better one.
        HubError: The Hub refused, could not be reached, or holds something else than was sent.
        HardwareError: The folder cannot be written.
    """
    check_outside(options, folder)
    with as_artifact(folder, report, token) as artifact:
        return _publish(artifact, options, token, report)


def _publish(folder: Path, options: PublishOptions, token: str | None, report: Report) -> Published:
    if not options.insist:
        _gate(folder)
    if options.to_folder is not None:
        check_folder(options.to_folder)
        files = _checked(folder, options, None, report)
        return _to_folder(files, options.to_folder, report)
    patience = long_patience(load_settings().hub_patience_seconds, report.log)
    _, token = check_token(options, token, patience)
    files = _checked(folder, options, token, report)
    repo = Repo(options, token, patience)
    return repo.finish(files, repo.claim(files), report)


def _gate(folder: Path) -> None:
    """Refuse what the engine that its card recommends was not seen to serve."""
    check = open_artifact(folder).check
    if check is None:
        raise SpecError(f"'{folder.name}' is not published before it is checked: check it first, or insist.")
    if not check.passed:
        raise SpecError(f"'{folder.name}' was not published: its check failed. {check.reason} Mend that, or insist.")


def _checked(folder: Path, options: PublishOptions, token: str | None, report: Report) -> dict[str, OutgoingFile]:
    report.log("Comparing every file with its sha256.")
    verify(folder)
    files = outgoing(folder, options.repo_id, token, card=options.card, variants=options.variants)
    check_weights(files, token, report)
    return files


def _to_folder(files: dict[str, OutgoingFile], target: Path, report: Report) -> Published:
    """Write a folder that holds what the Hub would have got, whole or not at all."""
    total, done = sum(file.size for file in files.values()), 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch(target.parent) as draft:
            for name, file in files.items():
                (draft / name).parent.mkdir(exist_ok=True)
                if isinstance(file.source, Path):
                    shutil.copyfile(file.source, draft / name)
                else:
                    (draft / name).write_bytes(file.read())
                if sha256(draft / name) != file.sha256:
                    raise HardwareError(f"'{name}' was not written as it is: check the disk of '{target}'.")
                fsync(draft / name)
                done += file.size
                report.progress("publishing", done, total, "bytes")
            draft.chmod(0o755)
            draft.rename(target)
            fsync(target.parent)
    except OSError as e:
        raise HardwareError(
            f"Could not publish to '{target}'. {e.strerror}: choose a folder that can be written, with"
            f" {total / 1e6:.0f} MB free."
        ) from e
    return Published(location=str(target), files=tuple(files), verified=True)
