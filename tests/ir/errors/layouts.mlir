// RUN: uniap-opt %s --split-input --verify-diagnostics
// Pending values and splits, op by op, by rules; axis a has size 2, b has size 2.

// What is right: both matmuls of a Megatron block, then the residual.
module @right {
  func @f(
    %x: tensor<Bx64xf32> @[_, _], %up: tensor<256x64xf32> @[a, _], %down: tensor<64x256xf32> @[_, a]
  ) -> (tensor<Bx64xf32> @[_, _]) attributes {tensor_axes = #axes<a = 2>} {
    %h = nn.contract(%x, %up) {equation = "b k, n k -> b n", rule = #rule<b k, n k -> b n | sum k | linear 0 | linear 1>, split = #split<a = n>} : tensor<Bx256xf32> @[_, a]
    %g = aten.gelu(%h) {rule = #rule<b n -> b n>, split = #split<a = n>} : tensor<Bx256xf32> @[_, a]
    %p = nn.contract(%g, %down) {equation = "b k, n k -> b n", rule = #rule<b k, n k -> b n | sum k | linear 0 | linear 1>, split = #split<a = k>} : tensor<Bx64xf32> @[_, _; sum a]
    %half = aten.mul.Tensor(%p) {other = 0.5, rule = #rule<b n -> b n | linear 0>} : tensor<Bx64xf32> @[_, _; sum a]
    %y = comm.all_reduce(%half) {axes = ["a"], op = "sum"} : tensor<Bx64xf32> @[_, _]
    %z = aten.add.Tensor(%x, %y) {rule = #rule<b n, b n -> b n | linear 0 1>} : tensor<Bx64xf32> @[_, _]
    return %z
  }
}
// -----
module @nonlinear_op_reads_a_pending_value {
  func @f(%x: tensor<4xf32> @[_; sum a]) -> () {
    // expected-error@+1 {{operand 0 of aten.gelu is a pending sum over a, and the op takes complete values only}}
    %y = aten.gelu(%x) {rule = #rule<n -> n>} : tensor<4xf32> @[_; sum a]
    return
  }
}
// -----
module @multilinear_op_reads_two {
  func @f(%x: tensor<4xf32> @[_; sum a], %w: tensor<4xf32> @[_; sum a]) -> () {
    // expected-error@+1 {{the operands [0, 1] of aten.mul.Tensor are pending over a, and the op takes exactly the operands {0} or {1} pending, the others complete}}
    %y = aten.mul.Tensor(%x, %w) {rule = #rule<n, n -> n | linear 0 | linear 1>} : tensor<4xf32> @[_; sum a]
    return
  }
}
// -----
module @additive_op_reads_one {
  func @f(%x: tensor<4xf32> @[_; sum a], %w: tensor<4xf32> @[_]) -> () {
    // expected-error@+1 {{the operands [0] of aten.add.Tensor are pending over a, and the op takes exactly the operands {0, 1}}}
    %y = aten.add.Tensor(%x, %w) {rule = #rule<n, n -> n | linear 0 1>} : tensor<4xf32> @[_; sum a]
    return
  }
}
// -----
module @a_maximum_does_not_pass {
  func @f(%x: tensor<4xf32> @[_; max a]) -> () {
    // expected-error@+1 {{operand 0 of aten.mul.Tensor is a pending max over a}}
    %y = aten.mul.Tensor(%x) {other = -1.0, rule = #rule<n -> n | linear 0>} : tensor<4xf32> @[_; max a]
    return
  }
}
// -----
module @the_result_forgets_that_it_is_pending {
  func @f(%x: tensor<4xf32> @[_; sum a]) -> () {
    // expected-error@+1 {{operand 0 of aten.neg is a pending sum over a, so result 0 is one, not whole}}
    %y = aten.neg(%x) {rule = #rule<n -> n | linear 0>} : tensor<4xf32> @[_]
    return
  }
}
// -----
module @a_reduction_forgets_its_sum {
  func @f(%x: tensor<4x8xf32> @[_, a]) -> () {
    // expected-error@+1 {{no factor of the rule of aten.sum.dim_IntList makes of operands (split in dim 1) results (whole) on the axis a}}
    %y = aten.sum.dim_IntList(%x) {dim = [1], rule = #rule<m n -> m | sum n>} : tensor<4xf32> @[_]
    return
  }
}
// -----
module @the_named_factor_is_another {
  func @f(%x: tensor<4x8xf32> @[_, a]) -> () {
    // expected-error@+1 {{splitting m over a does not fit operand 0, which is split in dim 1}}
    %y = aten.gelu(%x) {rule = #rule<m n -> m n>, split = #split<a = m>} : tensor<4x8xf32> @[_, a]
    return
  }
}
// -----
module @one_operand_is_whole {
  func @f(%x: tensor<4x8xf32> @[_, a], %y: tensor<4x8xf32> @[_, _]) -> () {
    // expected-error@+1 {{no factor of the rule of aten.mul.Tensor makes of operands (split in dim 1, whole) results (split in dim 1)}}
    %z = aten.mul.Tensor(%x, %y) {rule = #rule<m n, m n -> m n>} : tensor<4x8xf32> @[_, a]
    return
  }
}
// -----
module @a_kept_factor {
  func @f(%x: tensor<4x8xf32> @[_, a]) -> () {
    // expected-error@+1 {{the op splits n over a, and its rule keeps that factor whole}}
    %y = aten._softmax(%x) {dim = -1, half_to_float = false, rule = #rule<m n -> m n | keep n>, split = #split<a = n>} : tensor<4x8xf32> @[_, a]
    return
  }
}
// -----
module @an_op_without_a_rule {
  func @f(%x: tensor<4x8xf32> @[_, a]) -> () {
    // expected-error@+1 {{aten.gelu has no rule, so its operands and results must be whole on the axis a}}
    %y = aten.gelu(%x) : tensor<4x8xf32> @[_, a]
    return
  }
}
// -----
module @a_value_without_a_layout {
  func @f(%x: tensor<4x8xf32> @[_, a]) -> () {
    // expected-error@+1 {{%y has no layout, and other values of @f have}}
    %y = aten.gelu(%x) {rule = #rule<m n -> m n>} : tensor<4x8xf32>
    return
  }
}
// -----
module @the_factor_inside_a_dim {
  // A dim of 4 heads x 8: splitting the heads gives a contiguous split, splitting inside each head does not.
  func @f(%x: tensor<4x8xf32> @[a, _], %y: tensor<4x8xf32> @[_, a]) -> () attributes {tensor_axes = #axes<a = 2>} {
    %heads = aten.view(%x) {size = [32], rule = #rule<h d -> (h d) | size h=4 d=8>, split = #split<a = h>} : tensor<32xf32> @[a]
    %inner = aten.view(%y) {size = [32], rule = #rule<h d -> (h d) | size h=4 d=8>, split = #split<a = d>} : tensor<32xf32> @[(_:4 a:8)]
    // expected-error@+1 {{splitting d over a does not make result 0 split in dim 0}}
    %wrong = aten.view(%y) {size = [32], rule = #rule<h d -> (h d) | size h=4 d=8>, split = #split<a = d>} : tensor<32xf32> @[a]
    return
  }
}
// -----
module @comm_right {
  func @f(%x: tensor<4x8xf32> @[_, _; sum a, sum b]) -> () {
    %s = comm.reduce_scatter(%x) {axes = ["a"], dim = 1} : tensor<4x8xf32> @[_, a; sum b]
    %r = comm.all_reduce(%s) {axes = ["b"], op = "sum"} : tensor<4x8xf32> @[_, a]
    %t = comm.all_to_all(%r) {axes = ["a"], split_dim = 0, concat_dim = 1} : tensor<4x8xf32> @[a, _]
    %g = comm.all_gather(%t) {axes = ["a"], dim = 0} : tensor<4x8xf32> @[_, _]
    %l = comm.slice(%g) {axes = ["a", "b"], dim = 0} : tensor<4x8xf32> @[a*b, _]
    %o = comm.first(%g) {axes = ["b"]} : tensor<4x8xf32> @[_, _; sum b]
    return
  }
}
// -----
module @comm_on_a_complete_value {
  func @f(%x: tensor<4x8xf32> @[_, _]) -> () {
    // expected-error@+1 {{comm.all_reduce takes an operand that is a pending sum over a, not whole}}
    %y = comm.all_reduce(%x) {axes = ["a"], op = "sum"} : tensor<4x8xf32> @[_, _]
    return
  }
}
// -----
module @comm_of_the_wrong_kind {
  func @f(%x: tensor<4x8xf32> @[_, _; max a]) -> () {
    // expected-error@+1 {{comm.all_reduce takes an operand that is a pending sum over a, not a pending max}}
    %y = comm.all_reduce(%x) {axes = ["a"], op = "sum"} : tensor<4x8xf32> @[_, _]
    return
  }
}
// -----
module @comm_along_the_wrong_dim {
  func @f(%x: tensor<4x8xf32> @[_, a]) -> () {
    // expected-error@+1 {{comm.all_gather takes an operand that is split in dim 0 over a, not split in dim 1}}
    %y = comm.all_gather(%x) {axes = ["a"], dim = 0} : tensor<4x8xf32> @[_, _]
    return
  }
}
// -----
module @comm_loses_another_axis {
  func @f(%x: tensor<4x8xf32> @[b, a]) -> () {
    // expected-error@+1 {{comm.all_gather moves ['a'], and its operand is split in dim 0 over b, its result whole}}
    %y = comm.all_gather(%x) {axes = ["a"], dim = 1} : tensor<4x8xf32> @[_, _]
    return
  }
}
// -----
module @comm_of_the_outer_axis {
  // Gathering the outer one of two axes leaves runs, not a contiguous split.
  func @f(%x: tensor<8xf32> @[a*b]) -> () attributes {tensor_axes = #axes<a = 2, b = 2>} {
    %right = comm.all_gather(%x) {axes = ["b"], dim = 0} : tensor<8xf32> @[a]
    // expected-error@+1 {{its operand is split in dim 0, inside 2 blocks over b, its result split in dim 0}}
    %wrong = comm.all_gather(%x) {axes = ["a"], dim = 0} : tensor<8xf32> @[b]
    return
  }
}
// -----
module @comm_changes_the_shape {
  func @f(%x: tensor<4x8xf32> @[_, a]) -> () {
    // expected-error@+1 {{comm.all_gather does not change the shape or dtype, and its result is tensor<4x16xf32>}}
    %y = comm.all_gather(%x) {axes = ["a"], dim = 1} : tensor<4x16xf32> @[_, _]
    return
  }
}
// -----
module @comm_within_a_dim {
  func @f(%x: tensor<8xf32> @[(a:2 _:2 b:2)]) -> () {
    // expected-error@+1 {{comm.all_to_all is between two dims: within one, gather and slice}}
    %y = comm.all_to_all(%x) {axes = ["b"], split_dim = 0, concat_dim = 0} : tensor<8xf32> @[(a:2 b:2 _:2)]
    return
  }
}
