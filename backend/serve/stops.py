"""Stop texts: where an answer ends that comes in pieces; of the engines some leave the text at its end, some do not."""

from collections.abc import Sequence


class Stops:
    """Lets a text through up to the first of some texts, and holds back what may become one.

    Args:
        texts: That end it.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = [text for text in texts if text]
        self._held = ""
        self.met = False

    def take(self, piece: str) -> str:
        """Return what is certain by now, once a piece has come; nothing after a stop."""
        if self.met:
            return ""
        text = self._held + piece
        places = [at for stop in self._texts if (at := text.find(stop)) >= 0]
        self.met = bool(places)
        held = 0 if self.met else self._beginning(text)
        end = min(places, default=len(text) - held)
        self._held = text[end:] if held else ""
        return text[:end]

    def rest(self) -> str:
        """Return what was held back, once nothing more comes."""
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """Return how many characters at the end of a text are the beginning of a stop."""
        longest = max(map(len, self._texts), default=1) - 1
        starts = range(max(0, len(text) - longest), len(text))
        return next((len(text) - at for at in starts if any(s.startswith(text[at:]) for s in self._texts)), 0)
