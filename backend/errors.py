"""The exception tree: only for what a user can act on.

Each message is a sentence or two: what could not be done, the value in quotes, then what to do.
"""

MAX_TEXT = 4000
"""Characters of an error: whatever it repeats of what was given, nobody reads, logs or sends more."""


def shortened(text: str, length: int) -> str:
    """Return a text, or its beginning where it is longer."""
    return text if len(text) <= length else text[:length] + "…"


class AppError(Exception):
    """The root; its text is shown to the user as it stands.

    Args:
        message: The sentence.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(shortened(message, MAX_TEXT))


class SpecError(AppError):
    """What was asked for cannot be done: a wrong option, file, name or model.

    Args:
        message: The sentence, or all faults joined by line breaks.
        faults: Field name to what is wrong with it, where there are fields.
    """

    def __init__(self, message: str, faults: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.faults = faults or {}


class AdapterError(SpecError):
    """The model that was named is an adapter.

    Args:
        message: The sentence.
        base_model: Its base model on the Hub, if it names one.
    """

    def __init__(self, message: str, base_model: str | None) -> None:
        super().__init__(message)
        self.base_model = base_model


class HubError(AppError):
    """The Hub refused or could not be reached."""


class LoginError(HubError):
    """The Hub requires a token, or one that may do more."""


class HardwareError(AppError):
    """This machine is missing the disk, memory or device that the work requires."""


class JobError(AppError):
    """A job, server or worker did not do its work."""
