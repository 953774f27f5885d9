"""What to say about a syntax error, by example: lark finds the example that fails in the same parser state.

The sentence completes "found X: ...".  The first example that matches wins.
"""

from __future__ import annotations


def _module(body: str) -> str:
    return "module @m {" + body


def _func(body: str) -> str:
    return _module("func @f(%p: tensor<f32>) -> (none) {" + body)


def _tail(rest: str) -> list[str]:
    """After an op with and without attributes: two states of the parser."""
    return [_func("%a = a.b() " + rest), _func("%a = a.b() {a = 1} " + rest)]


EXAMPLES: dict[str, list[str]] = {
    "a text starts with `module @name {`": ["func", "", "@m {", "%x", "x"],
    "a module's name starts with @": ["module {", "module m {", "module"],
    "a text holds one module (uniap-opt splits several with --split-input)": [
        "module @m { } module",
        "module @m { } func",
        "module @m { } x",
        "module @m { } }",
        "module @m { a.b() } }",
    ],
    "a func, an op, or the } that closes the module comes here": [
        _module(""),
        _module("a.b() {a = 1}"),
        _module("func @f() -> () { return }"),
        _module("func @f() -> () { a.b() return }"),
        _module("@f"),
        _module("return"),
        _module("x"),
        _module("a.b() return"),
        _module("func @f() -> () { return } x"),
    ],
    "a func's name starts with @": [_module("func f"), _module("func ("), _module("func %f")],
    "the parameters in parentheses follow the func's name": [_module("func @f {"), _module("func @f ->")],
    "a parameter is written %name: tensor<...>": [
        _module("func @f(%x)"),
        _module("func @f(%x,"),
        _module("func @f(%x tensor<f32>"),
        _module("func @f(x"),
        _module("func @f(@x"),
        _module("func @f(tensor<f32>"),
        _module("func @f(%x: tensor<f32>, )"),
    ],
    "a comma stands between parameters, a ) after the last": [
        _module("func @f(%x: tensor<f32> %y"),
        _module("func @f(%x: tensor<f32> @[] %y"),
        _module("func @f(%x: tensor<f32> {} %y"),
        _module("func @f(%x: tensor<f32> ->"),
    ],
    "-> and the result types in parentheses follow the parameters": [
        _module("func @f() {"),
        _module("func @f() attributes"),
        _module("func @f() -> tensor<f32>"),
        _module("func @f() -> {"),
        _module("func @f() -> %x"),
    ],
    "a type is written tensor<Bx64xf32>, with a layout @[a, _] after it where there is one": [
        _module("func @f(%x: f32"),
        _module("func @f(%x: %y"),
        _module("func @f(%x: @[]"),
        _module("func @f(%x: )"),
        *_tail(": f32"),
        *_tail(": return"),
        *_tail(": tensor<f32>, f32"),
    ],
    "a func ends with `return`, its values (or none) and }": [
        _func("}"),
        _func("a.b() }"),
        _func("return %p a.b()"),
        _func("$"),
        _func("a.b() $"),
        _func("return %p return"),
        _func("return func"),
        _func("return a.b"),
        _func("return"),
        _func("return %p %p"),
        _func("func"),
        _func(""),
    ],
    "a value starts with %": [
        _func("%a = a.b(a"),
        _func("%a = a.b(@a"),
        _func("%a = a.b(1"),
        _func("%a = a.b([a"),
        _func("return x"),
        _func("return %p, }"),
        _func("%a, b"),
        _func("%a = a.b(%p, )"),
    ],
    "a comma stands between operands, a ) after the last": [
        _func("%a = a.b(%p %p"),
        _func("%a = a.b(%p {"),
        _func("%a = a.b(none %p"),
        _func("%a = a.b({"),
        _func("%a = a.b(%p :"),
        _func("%a = a.b([%p %p"),
    ],
    "results are written %a, %b = name(...)": [_func("%a a.b"), _func("%a ("), _func("%a : tensor<f32>")],
    "an op's name is two or more words joined by dots, such as aten.relu": [
        _func("%a = relu("),
        _func("%a = %b"),
        _func("%a = @f"),
        _func("%a = 1"),
        _func("relu("),
    ],
    "after an op's operands come {attributes}, : types, loc(...), in this order": [
        *_tail("tensor<f32>"),
        *_tail("-> tensor<f32>"),
        *_tail("= 1"),
        *_tail("@f"),
        *_tail(": tensor<f32> {"),
        *_tail(": tensor<f32> : tensor<f32>"),
        *_tail('loc("f":1) {'),
    ],
    "an attribute is written key = value": [
        _func("a.b() {a: 1"),
        _func("a.b() {a}"),
        _func("a.b() {a, "),
        _func("a.b() {a 1"),
        _func("a.b() {= 1"),
        _func("a.b() {1"),
        _func("a.b() {%x"),
        _func("a.b() {a = 1, }"),
        _func("a.b() {a = #s<1"),
    ],
    'an attribute\'s value is a number, a word, a "string", @symbol, #struct<...>, #rule<...>, @[layout] or [list]': [
        _func("a.b() {a = }"),
        _func("a.b() {a = ,"),
        _func("a.b() {a = %x"),
        _func("a.b() {a = {"),
        _func("a.b() {a = tensor<f32>"),
        _func("a.b() {a = ("),
        _func("a.b() {a = [1, %x"),
        _func("a.b() {a = '"),
        _func("a.b() {a = [1, '"),
    ],
    "a comma stands between attributes, a } after the last": [
        _func("a.b() {a = 1 b = 2"),
        _func("a.b() {a = 1 :"),
        _func("a.b() {a = 1 %x"),
    ],
    "a comma stands between the items of a list, a ] after the last": [
        _func("a.b() {a = [1 2"),
        _func("a.b() {a = [1 }"),
    ],
}
