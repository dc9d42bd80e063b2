"""The doors and who stands before them."""

import re
from pathlib import Path

import gradio as gr

from tests.support.house import event

SIGN_IN, DUPLICATE = "sign in with Hugging Face", "huggingface.co/spaces/anna/studio?duplicate=true"

# Route: what Anna, Ben, nobody, a forger and a page of another website with Anna's cookie are answered.
EVERYBODYS = (200, 200, 200, 200, 403)

ANNAS = (200, 404, 404, 404, 403)

WHO_SIGNED_IN = (200, 200, 403, 403, 403)

ELSEWHERE = (302, 302, 302, 302, 403)

BACK = (307, 307, 307, 307, 403)

CLOSED = (404, 404, 404, 404, 403)

UNUSED = """
/openapi.json /login/ /login /gradio_api/deep_link /pwa_icon/{size} /pwa_icon /monitoring /monitoring/summary
/monitoring/{key} /gradio_api/dev/reload /gradio_api/custom_component/{id}/{environment}/{type}/{file_name}
/gradio_api/proxy={url_path:path} /gradio_api/stream/{event_id} /gradio_api/stream/{event_id}/close
/gradio_api/stream/{session_hash}/{run}/{component_id}/playlist.m3u8
/gradio_api/stream/{session_hash}/{run}/{component_id}/{segment_id}.{ext}
/gradio_api/stream/{session_hash}/{run}/{component_id}/playlist-file /gradio_api/file/{path:path}
/gradio_api/call/{api_name}/{event_id} /gradio_api/call/v2/{api_name}/{event_id} /gradio_api/queue/status
/gradio_api/openapi.json /gradio_api/process_recording /svelte/{path:path} /gradio_api/app_id/ /config /config/
/manifest.json /gradio_api/theme.css /gradio_api/startup-events
"""

UNUSED_WITH_AND_WITHOUT_SLASH = """
/gradio_api/user /gradio_api/login_check /gradio_api/token /gradio_api/runs /gradio_api/info /gradio_api/reset
/gradio_api/api/{api_name} /gradio_api/run/{api_name} /gradio_api/call/v2/{api_name} /gradio_api/call/{api_name}
/gradio_api/component_server /gradio_api/vibe-edit /gradio_api/undo-vibe-edit /gradio_api/vibe-code
/gradio_api/vibe-starter-queries
"""

TABLE = {
    "/": EVERYBODYS,
    "/theme.css": EVERYBODYS,
    "/favicon.ico": EVERYBODYS,
    "/robots.txt": EVERYBODYS,
    "/static/{path:path}": EVERYBODYS,
    "/assets/{path:path}": EVERYBODYS,
    "/gradio_api/app_id": EVERYBODYS,
    "/gradio_api/queue/join": ANNAS,
    "/gradio_api/queue/data": ANNAS,
    "/gradio_api/cancel": ANNAS,
    "/gradio_api/heartbeat/{session_hash}": ANNAS,
    "/gradio_api/file={path_or_url:path}": ANNAS,
    "/gradio_api/upload": WHO_SIGNED_IN,
    "/gradio_api/upload_progress": ANNAS,
    "/artifacts/{job}/{step}/{name:path}": ANNAS,
    "/login/huggingface": ELSEWHERE,
    "/login/callback": BACK,
    "/logout": BACK,
    "/changes": EVERYBODYS,
    **dict.fromkeys(UNUSED.split(), CLOSED),
    **{path + slash: CLOSED for path in UNUSED_WITH_AND_WITHOUT_SLASH.split() for slash in ("", "/")},
}


def sample(house, path):
    """Return an address of a route and what goes with it, with Anna's own names in it."""
    assets = Path(gr.__file__).parent / "templates" / "frontend"
    asset, static = (
        next((assets / folder).rglob("*.js")).relative_to(assets / folder) for folder in ("assets", "static")
    )
    joined = {
        "fn_index": event(house.page, "jobs_load")._id,
        "data": [None],
        "session_hash": house.lasting,
    }
    special = {
        "/static/{path:path}": (f"/static/{static}", {}),
        "/assets/{path:path}": (f"/assets/{asset}", {}),
        "/gradio_api/queue/join": ("/gradio_api/queue/join", {"json": joined}),
        "/gradio_api/queue/data": (f"/gradio_api/queue/data?session_hash={house.lasting}", {}),
        "/gradio_api/cancel": (
            "/gradio_api/cancel", {"json": {"session_hash": house.lasting, "fn_index": 0, "event_id": "none"}}
        ),
        "/gradio_api/heartbeat/{session_hash}": (f"/gradio_api/heartbeat/{house.lasting}", {}),
        "/gradio_api/file={path_or_url:path}": (f"/gradio_api/file={house.file}", {}),
        "/gradio_api/upload": ("/gradio_api/upload", {"files": {"files": ("mine.txt", b"mine")}}),
        "/gradio_api/upload_progress": ("/gradio_api/upload_progress?upload_id=annas0upload", {}),
        "/artifacts/{job}/{step}/{name:path}": (f"/artifacts/{house.key}/model.safetensors", {}),
    }  # fmt: skip
    return special.get(path, (re.sub(r"{[^}]*}", "x", path), {}))
