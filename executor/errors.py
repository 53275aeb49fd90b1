"""The one error a caller of the executor would catch."""


class ExecutorError(RuntimeError):
    """Decoding could not go on: a worker died, hung or failed. What was recorded before stays readable."""


class LogitsError(ExecutorError):
    """A model gave logits that are not numbers, so that no token can be chosen. role: "target" or "draft"."""

    def __init__(self, role: str, message: str) -> None:
        super().__init__(message)
        self.role = role


def message_of(error: BaseException) -> str:
    """An error as a user reads it: its own words, with the name of its class only where it was not written for users."""
    text = " ".join(str(error).split())
    return (
        text if isinstance(error, (ExecutorError, ValueError, OSError)) and text else f"{type(error).__name__}: {text}"
    )
