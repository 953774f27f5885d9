"""What torch.export prints when it fails: the graph so far, and warnings about its own symbols.

    with quiet():
        torch.export.export(...)        # on failure the exception is all that is left of it
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Held:
    """sys.stderr for one thread: text is kept; a progress line of another thread goes through."""

    def __init__(self, real: Any) -> None:
        self.real, self.thread, self.text = real, threading.get_ident(), ""

    def write(self, text: str) -> int:
        if threading.get_ident() != self.thread:
            return int(self.real.write(text))
        self.text += text
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@contextmanager
def quiet() -> Iterator[None]:
    """What this thread writes to stderr appears when all went well, so that a model's own messages are not lost."""
    symbols = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level, real = symbols.level, sys.stderr
    held = _Held(real)
    symbols.setLevel(logging.ERROR)
    sys.stderr = held  # type: ignore[assignment]
    try:
        yield
    except BaseException:
        held.text = ""
        raise
    finally:
        sys.stderr = real
        symbols.setLevel(level)
        if held.text:
            real.write(held.text)
