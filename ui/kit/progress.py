"""How progress looks: a bar, and below it the phase, the share, the speed and the time left."""

from collections.abc import Mapping
from typing import Any

from ui.kit.format import count, duration, escape, size


def bar(progress: Mapping[str, Any] | None, phase: str, name: str) -> str:
    """Write a bar.

    Args:
        progress: A progress event of Report, or None before the first.
        phase: What is being done.
        name: The id of its element.
    """
    done = share(progress)
    phase = phase.capitalize()
    value = "" if done is None else f' aria-valuenow="{done:.0f}"'
    width = "" if done is None else f' style="width:{done:.1f}%"'
    kind = "bar" if done is not None else "bar unknown"
    return (
        f'<div class="{kind}" id="{name}" role="progressbar" aria-label="{escape(phase)}" aria-valuemin="0"'
        f' aria-valuemax="100"{value}><i{width}></i></div><p class="pace">{_pace(progress or {}, phase)}</p>'
    )


def share(progress: Mapping[str, Any] | None) -> float | None:
    """Return how much is done, of 100, if that is known."""
    if not progress or not progress.get("total"):
        return None
    done = 100 * float(progress.get("done", 0)) / float(progress["total"])
    return max(0.0, min(100.0, done))


def _pace(progress: Mapping[str, Any], phase: str) -> str:
    parts = [f"<b>{escape(phase)}</b>"]
    done = share(progress)
    if done is not None:
        parts.append(f"{done:.0f}%")
    if progress.get("speed"):
        parts.append(_speed(progress["speed"], str(progress.get("unit", ""))))
    if progress.get("seconds_left") is not None:
        parts.append(f"about {duration(progress['seconds_left'])} left")
    return " · ".join(parts)


def _speed(speed: float, unit: str) -> str:
    if unit == "bytes":
        return f"{size(speed)}/s"
    return f"{count(speed) if speed >= 100 else f'{speed:.2g}'} {escape(unit)}/s"
