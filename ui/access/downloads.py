"""Downloads: a route for the results of a visitor's own jobs."""

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse

from backend.errors import AppError
from ui.studio import Result, Studio
from ui.visitor import visitor_of


def add_downloads(app: FastAPI, studio: Studio) -> None:
    """Open /artifacts/{job}/{step}/{name}; for anyone else a job does not exist."""

    @app.api_route("/artifacts/{job}/{step}/{name:path}", methods=["GET", "HEAD"])
    def download(job: str, step: str, name: str, request: Request) -> FileResponse:
        owner = visitor_of(studio.settings, request.scope).owner
        try:
            result = studio.result(f"{job}/{step}", owner) if owner else None
        except AppError:
            result = None
        if result is None or name not in result.artifact.files:
            raise HTTPException(404)
        return FileResponse(result.folder / name, filename=name.rpartition("/")[2])


def address(result: Result, name: str) -> str:
    """Return where a file of a result is downloaded."""
    return f"/artifacts/{result.key}/{name}"
