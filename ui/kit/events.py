"""How events show that they run, whichever tab they belong to; each has an `api_name` of its own beside it."""

from typing import Any

QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": [], "api_visibility": "private"}
"""They show nothing. Without the empty list the browser keeps a status for each output of each event, and at every
message of any event it walks through all components once for each of them."""

LATEST: dict[str, Any] = {"trigger_mode": "always_last", **QUIET}
"""They show nothing, and happen once more for what was set while they ran; else that would not be heard."""

BUSY: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private"}
"""They show it on the one component that `show_progress_on` names."""
