"""Values are called after the modules that make them."""

from uniap_compiler.codegen.wishes import stem, wishes
from uniap_compiler.ir import Func, parse_module


def func(body: str) -> Func:
    module = parse_module(f"// uniap-ir 1\nmodule @m {{\n{body}\n}}", "test.mlir")
    return next(iter(module.funcs.values()))


FORWARD = """func @block.forward(%x: tensor<4x8xf32>, %mlp.up.weight: tensor<8x8xf32>) -> (tensor<4x8xf32>) {
  %native_layer_norm, %native_layer_norm_1, %native_layer_norm_2 = aten.native_layer_norm(%x, none, none) {normalized_shape = [8], eps = 0.1} : tensor<4x8xf32>, tensor<4x1xf32>, tensor<4x1xf32> loc("m.py":1 in "layers.0.norm")
  %contract = nn.contract(%native_layer_norm, %mlp.up.weight) {equation = "b k, n k -> b n"} : tensor<4x8xf32> loc("m.py":2 in "layers.0.mlp.up")
  %contract_reduced = comm.all_reduce(%contract) {group = "a", op = "sum"} : tensor<4x8xf32> loc("m.py":2 in "layers.0.mlp.up")
  %view = aten.reshape(%contract_reduced) {shape = [4, 8]} : tensor<4x8xf32> loc("m.py":3 in "layers.0.mlp")
  %pow_1 = aten.pow.Tensor_Scalar(%view) {exponent = 2} : tensor<4x8xf32> loc("m.py":3 in "layers.0.mlp")
  %to_copy = aten._to_copy(%pow_1) {dtype = f32} : tensor<4x8xf32> loc("m.py":3 in "layers.0.mlp.0")
  %contract_1 = nn.contract(%to_copy, %mlp.up.weight) {equation = "b k, n k -> b n"} : tensor<4x8xf32> loc("m.py":4 in "layers.0.mlp.1")
  %hidden = aten.add.Tensor(%contract_1, %x) : tensor<4x8xf32> loc("m.py":5 in "layers.0")
  %add = aten.add.Tensor(%hidden, %x) : tensor<4x8xf32> loc("m.py":5 in "layers.0")
  return %add
}"""  # noqa: E501


def test_forward() -> None:
    found = wishes(func(FORWARD))
    assert found == {
        "x": "x", "mlp.up.weight": "mlp.up.weight",
        "native_layer_norm": "norm", "native_layer_norm_1": "norm_mean", "native_layer_norm_2": "norm_rstd",
        "contract": "up", "contract_reduced": "up", "view": "up",
        "pow_1": "pow",  # what a container does between its modules has no name of its own
        "to_copy": "pow",
        "contract_1": "mlp_1",
        "hidden": "hidden",
        "add": "add",
    }  # fmt: skip


def test_backward_speaks_of_the_forward_values() -> None:
    backward = func("""func @block.backward(%view: tensor<4x8xf32> {role = "saved", of = "view"}, %t: tensor<4x8xf32> {role = "tangent", of = "add"}) -> (tensor<4x8xf32>) {
      %mul = aten.mul.Tensor(%t, %view) : tensor<4x8xf32> loc("m.py":3 in "layers.0.mlp.up")
      %gelu_backward = aten.gelu_backward(%mul, %view) : tensor<4x8xf32> loc("m.py":3 in "layers.0.mlp")
      %x.grad = aten.neg(%gelu_backward) : tensor<4x8xf32> loc("m.py":3 in "layers.0")
      return %x.grad
    }""")  # noqa: E501
    found = wishes(backward, wishes(func(FORWARD)))
    assert found == {"view": "up", "t": "d_add", "mul": "d_up", "gelu_backward": "d_gelu", "x.grad": "d_x"}


def test_a_function_that_is_one_module() -> None:
    head = func("""func @head.forward(%x: tensor<4x8xf32>, %w: tensor<8x8xf32>) -> (tensor<4x8xf32>) {
      %contract = nn.contract(%x, %w) {equation = "b k, n k -> b n"} : tensor<4x8xf32> loc("m.py":1 in "head")
      %exp = aten.exp(%contract) : tensor<4x8xf32> loc("m.py":1 in "head")
      return %exp
    }""")
    assert wishes(head) == {"x": "x", "w": "w", "contract": "head", "exp": "exp"}


def test_results_of_one_collective_are_called_like_their_operands() -> None:
    many = func("""func @stage_0.reduce_gradients(%a: tensor<4xf32>, %b: tensor<8xf32>) -> (tensor<4xf32>, tensor<8xf32>) {
      %a_1, %b_1 = comm.all_reduce_many(%a, %b) {group = "a", op = "sum"} : tensor<4xf32>, tensor<8xf32>
      return %a_1, %b_1
    }""")  # noqa: E501
    assert wishes(many, gradients=["a", "b"]) == {"a": "d_a", "b": "d_b", "a_1": "d_a", "b_1": "d_b"}


def test_stem() -> None:
    assert [stem(n) for n in ("add_3", "add", "layers_0", "x_1_2", "t0", "layers.0.mlp_1")] == [
        "add", "add", "layers", "x_1_2", "t0", "layers.0.mlp",
    ]  # fmt: skip
