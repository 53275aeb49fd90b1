"""The one error a caller of the executor would catch."""


class ExecutorError(RuntimeError):
    """Decoding could not go on: a worker died, hung or failed. What was recorded before stays readable."""
