"""The intermediate representation: values, ops, funcs, types, layouts, rules, and their one textual form.  No torch.

The parser (and lark with it) is imported at the first use of `parse_module`.
"""

from typing import TYPE_CHECKING, Any

from .affine import Affine, Dim, affine, at
from .attributes import Atom, Attr, Attrs, Struct, Symbol, struct
from .compare import difference, equal
from .constants import Constant, ConstantStore
from .core import ITEM_BYTES, Func, Loc, Module, Namer, Op, TensorType, Value, users
from .diagnostics import Diagnostic
from .layouts import WHOLE, Layout, Part, split_by
from .ops import ALIASING_OPS
from .printer import print_func, print_module, print_op, str_module
from .rules import Rule
from .verifier import LEVELS, verify

if TYPE_CHECKING:
    from .parser import parse_module

__all__ = [
    "ALIASING_OPS", "ITEM_BYTES", "LEVELS", "WHOLE",
    "Affine", "Atom", "Attr", "Attrs", "Constant", "ConstantStore", "Diagnostic", "Dim", "Func", "Layout",
    "Loc", "Module", "Namer", "Op", "Part", "Rule", "Struct", "Symbol", "TensorType", "Value", "affine", "at",
    "difference", "equal", "parse_module", "print_func", "print_module", "print_op", "split_by", "str_module", "struct",
    "users", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "parse_module":
        from .parser import parse_module

        return parse_module
    raise AttributeError(f"module {__name__} has no attribute {name}")
