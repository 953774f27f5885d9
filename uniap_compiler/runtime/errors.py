"""Errors that a person can act on: printed as one sentence and a help line, without a traceback."""

from __future__ import annotations


class BundleError(Exception):
    """Something is wrong with the bundle, its start or its data.  `everywhere`: every rank sees it, one says it."""

    def __init__(self, message: str, help: str | None = None, everywhere: bool = False) -> None:
        super().__init__(message if help is None else f"{message}\n  help: {help}")
        self.everywhere = everywhere


class CommunicationError(Exception):
    """A collective or transfer failed: a peer died, hangs, or runs another programme."""
