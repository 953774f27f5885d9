"""The intermediate representation: values, ops, funcs, types, layouts, rules, and their one textual form.  No torch."""

from .affine import Affine, Dim, affine, at
from .attributes import Atom, Attr, Attrs, Struct, Symbol, struct
from .core import Func, Loc, Module, Namer, Op, TensorType, Value, users
from .layouts import WHOLE, Layout, Part, split_by
from .rules import Rule

__all__ = [
    "Affine", "Atom", "Attr", "Attrs", "Dim", "Func", "Layout", "Loc", "Module", "Namer", "Op", "Part", "Rule", "Struct",
    "Symbol", "TensorType", "Value", "WHOLE", "affine", "at", "split_by", "struct", "users",
]
