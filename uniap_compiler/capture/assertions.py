"""Values of tensors that an `assert` asks for, which a graph does not have: captured is the step that passes.

    assert torch.all(ids >= 0).item(), "..."        assert lengths.max() <= size        assert not mask.any()

Inside `Capturable`, `.item()` and the truth of a tensor in such a statement are what lets it pass.  A compiled step
does not check.
"""

from __future__ import annotations

import ast
import linecache
import sys
from functools import lru_cache
from typing import Any

from torch import Tensor

from .places import is_users


class Passing:
    """A number of which everything that is said is true, or false."""

    def __init__(self, truth: bool) -> None:
        self.truth = truth

    def __bool__(self) -> bool:
        return self.truth

    def _compared(self, _: Any) -> bool:
        return self.truth

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _compared  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


def item(x: Tensor) -> Any:
    """Of `Tensor.item`: NotImplemented outside of an assertion."""
    asserted = _asserted()
    return NotImplemented if asserted is None else Passing(asserted)


def truth(x: Tensor) -> Any:
    """Of `Tensor.__bool__`: NotImplemented outside of an assertion."""
    asserted = _asserted()
    return NotImplemented if asserted is None else asserted


def _asserted() -> bool | None:
    """What the user's line must come to where it is an assertion of one thing, or of several that must all hold."""
    frame = sys._getframe(2)
    while frame is not None and not is_users(frame.f_code.co_filename):
        frame = frame.f_back  # type: ignore[assignment]
    return None if frame is None else _assertions(frame.f_code.co_filename).get(frame.f_lineno)


@lru_cache(maxsize=256)
def _assertions(file: str) -> dict[int, bool]:
    """Line -> False where the assertion there begins with `not`, else True."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return {}
    found: dict[int, bool] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assert):
            continue
        negated = isinstance(node.test, ast.UnaryOp) and isinstance(node.test.op, ast.Not)
        inside = node.test.operand if isinstance(node.test, ast.UnaryOp) else node.test
        # A `not` further inside would turn one value round, and a name given here (:=) would take ours elsewhere.
        if any(isinstance(part, (ast.Not, ast.NamedExpr)) for part in ast.walk(inside)):
            continue
        found |= dict.fromkeys(range(node.lineno, (node.test.end_lineno or node.lineno) + 1), not negated)
    return found
