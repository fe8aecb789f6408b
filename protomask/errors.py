"""The errors that protomask raises on purpose.

All derive from :class:`ProtomaskError`, so a caller can catch what we say and let everything else surface. Each
message names the argument, what was expected and what came.
"""

from __future__ import annotations


class ProtomaskError(Exception):
    """Base of every error that protomask raises on purpose."""


class InputError(ProtomaskError, ValueError):
    """An argument has the wrong shape, dtype, range or content."""


class ModelError(ProtomaskError, TypeError):
    """A model does not fulfil the contract, or its adapter could not prove that it reads the model rightly."""


class CheckpointError(ProtomaskError, ValueError):
    """A checkpoint is truncated, of another format, or would need arbitrary code to load."""


class HostileError(CheckpointError):
    """A checkpoint would call what no model needs; the message names it."""


class DataError(ProtomaskError, ValueError):
    """A data set's files are missing, corrupt or disagree with each other."""


class ResourceError(ProtomaskError, RuntimeError):
    """Memory ran out at the smallest chunk, the output folder cannot be written, or an optional package is missing."""


def expected(argument: str, wanted: str, came: object) -> str:
    """The one sentence form of our messages: ``argument: expected ..., got ...``."""
    return f"{argument}: expected {wanted}, got {came}"
