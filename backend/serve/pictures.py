"""Pictures in a conversation: which are taken, of what size, and how a file becomes one.

They come as data URLs alone, so that no server fetches an address. Nothing but Python's own library is imported: the
guard looks at them in vLLM's environment too. PNG is RFC 2083, JPEG is ITU T.81, WebP is RFC 9649.
"""

import base64
import binascii
import struct
from pathlib import Path
from typing import Any, NamedTuple

from backend.errors import SpecError

KINDS = ("png", "jpeg", "webp")

MOST = 4
"""Of a conversation; each may take thousands of its tokens."""

BYTES = 6_000_000  # of one
PIXELS = 4096 * 4096  # of one; decoded it takes three bytes for each

_SEGMENTS = 1_000  # of a JPEG, before the one that says its size
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # segments of a JPEG that say its size


class Header(NamedTuple):
    """What a picture says of itself before any of it is decoded."""

    kind: str
    width: int
    height: int


def header(data: bytes) -> Header | None:
    """Return what the first bytes of a PNG, JPEG or WebP say; None where it is none of them."""
    try:
        if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR":
            return Header("png", *struct.unpack(">II", data[16:24]))
        if data[:3] == b"\xff\xd8\xff":
            return _jpeg(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
    except (struct.error, IndexError):
        pass
    return None


def fault(data: bytes) -> str | None:
    """Say why a picture is not taken, without a subject and a full stop; None where it is."""
    if len(data) > BYTES:
        return f"has more than {BYTES // 10**6} MB: make it smaller"
    found = header(data)
    if found is None or not found.width * found.height:
        return "is not a valid PNG, JPEG or WebP picture: save it as one of these"
    if found.width * found.height > PIXELS:
        return f"has {found.width} × {found.height} pixels, {PIXELS / 10**6:.1f} million at most: make it smaller"
    return None


def url_fault(url: Any) -> str | None:
    """Say what is wrong with the address of a picture, in the same way; None where nothing is."""
    start, _, body = url.partition(",") if isinstance(url, str) else ("", "", "")
    if start not in [f"data:image/{kind};base64" for kind in KINDS]:
        return f"is no data URL of a {', '.join(KINDS[:-1])} or {KINDS[-1]} picture, and no address is fetched"
    if len(body) > BYTES * 4 // 3 + 4:
        return f"has more than {BYTES // 10**6} MB: make it smaller"
    try:
        return fault(base64.b64decode(body, validate=True))
    except (binascii.Error, ValueError):
        return "is not valid base64"


def part(file: Path) -> dict[str, Any]:
    """Return the part of a turn that holds a picture, as OpenAI's API has it.

    Args:
        file: On this machine.

    Raises:
        SpecError: It is no picture that is taken.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(BYTES + 1)
    except OSError as e:
        raise SpecError(f"'{file.name}' cannot be read as a picture ({e.strerror}): choose it again.") from e
    found = header(data)
    if (wrong := fault(data)) or found is None:
        raise SpecError(f"'{file.name}' {wrong}.")
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/{found.kind};base64,{base64.b64encode(data).decode()}"},
    }


def _jpeg(data: bytes) -> Header | None:
    at = 2
    for _ in range(_SEGMENTS):
        while data[at + 1] == 0xFF:  # bytes that fill up
            at += 1
        marker, length = struct.unpack(">BH", data[at + 1 : at + 4])
        if data[at] != 0xFF or length < 2:
            return None
        if marker in _FRAMES:
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return Header("jpeg", width, height)
        at += 2 + length
    return None


def _webp(data: bytes) -> Header | None:
    packed, kind = int.from_bytes(data[21:25], "little"), data[12:16]
    if len(data) < 30:
        return None
    if kind == b"VP8X":
        sides = [1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27)]
    elif kind == b"VP8L":
        sides = [1 + (packed >> shift & 0x3FFF) for shift in (0, 14)]
    elif kind == b"VP8 ":
        sides = [side & 0x3FFF for side in struct.unpack("<HH", data[26:30])]
    else:
        return None
    return Header("webp", *sides)
