"""Web: the page as an ASGI app, behind its guard."""

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.middleware.sessions import SessionMiddleware

from ui.access.downloads import add_downloads
from ui.access.guard import Guard
from ui.access.launch import Launch
from ui.changes import add_changes
from ui.kit.theme import CSS, theme
from ui.page import build_page
from ui.studio import Studio


def web_app(studio: Studio, launch: Launch | None) -> FastAPI:
    """Build the page and mount it behind the guard; nothing in the data folder can be fetched by its path.

    Args:
        studio: The backend.
        launch: Lets in who started the app; None on a Space.
    """
    settings = studio.settings
    page = build_page(studio)
    kept = studio.supervisor.uploads.of

    def session_of(event_id: str) -> str | None:  # Gradio cancels by an event's name alone, whoever says it
        event = page._queue.event_ids_to_events.get(event_id)
        return event.session_hash if event else None

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_downloads(app, studio)
    add_changes(app, studio)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        footer_links=[],
        run_history=False,
        blocked_paths=[str(settings.data.resolve())],
        max_file_size=settings.max_upload_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        app_kwargs={"exception_handlers": {RequestValidationError: _refuse}},
        theme=theme(),
        css_paths=[CSS],
    )
    app.add_middleware(
        Guard, settings=settings, launch=launch, session_of=session_of, kept=kept, knows=page.fns.__contains__
    )
    _read_sign_in_first(app)
    return app


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    """Say that a request is not one of the page's; FastAPI would repeat the whole of it."""
    return JSONResponse({"detail": "Not a valid request of this page."}, 422)


def _read_sign_in_first(app: FastAPI) -> None:
    """Put Gradio's reading of who has signed in before the guard, which needs it."""
    gradio = app.routes[-1].app  # type: ignore[attr-defined]
    for layer in [layer for layer in gradio.user_middleware if layer.cls is SessionMiddleware]:
        gradio.user_middleware.remove(layer)
        app.user_middleware.insert(0, layer)
