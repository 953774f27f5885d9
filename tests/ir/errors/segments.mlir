// RUN: uniap-opt %s --split-input --verify-diagnostics
// Values pass between the funcs of the stages by role.

// What is right: two stages, a gradient that is reduced once per step, and one that is final as it leaves backward.
module @right attributes {level = staged} {
  plan.mesh @mesh {axes = #axes<a = 2>, stages = 2, world = 4}
  plan.parameter @w {layout = @[_]}
  plan.parameter @v {layout = @[a]}
  func @stage_0.forward(%w: tensor<8xf32> @[_], %x: tensor<Bx8xf32> @[a, _]) -> (tensor<Bx8xf32> @[a, _], tensor<Bx8xf32> @[a, _])
      attributes {stage = 0, phase = "forward", args = ["param:w", "input:x"], results = ["send:h", "saved:h"]} {
    %h = aten.mul.Tensor(%x, %w) {rule = #rule<b n, n -> b n>} : tensor<Bx8xf32> @[a, _]
    return %h, %h
  }
  func @stage_0.backward(%h: tensor<Bx8xf32> @[a, _], %d: tensor<Bx8xf32> @[a, _]) -> (tensor<8xf32> @[_; sum a])
      attributes {stage = 0, phase = "backward", args = ["saved:h", "recv_grad:h"], results = ["grad:w"]} {
    %p = aten.mul.Tensor(%h, %d) {rule = #rule<b n, b n -> b n>} : tensor<Bx8xf32> @[a, _]
    %g = aten.sum.dim_IntList(%p) {dim = [0], rule = #rule<b n -> n | sum b>} : tensor<8xf32> @[_; sum a]
    return %g
  }
  func @stage_0.reduce_gradients(%g: tensor<8xf32> @[_; sum a]) -> (tensor<8xf32> @[_])
      attributes {stage = 0, phase = "reduce_gradients", args = ["grad:w"], results = ["grad:w"]} {
    %f = comm.all_reduce(%g) {axes = ["a"], op = "sum"} : tensor<8xf32> @[_]
    return %f
  }
  func @stage_1.forward(%v: tensor<8xf32> @[a], %h: tensor<Bx8xf32> @[a, _]) -> (tensor<f32> @[; sum a])
      attributes {stage = 1, phase = "forward", args = ["param:v", "recv:h"], results = ["loss"]} {
    %s = aten.sum(%h) {rule = #rule<b n -> [] | sum b n>} : tensor<f32> @[; sum a]
    return %s
  }
  func @stage_1.backward(%v: tensor<8xf32> @[a], %d: tensor<Bx8xf32> @[a, _]) -> (tensor<Bx8xf32> @[a, _], tensor<8xf32> @[a])
      attributes {stage = 1, phase = "backward", args = ["param:v", "seed:h"], results = ["send_grad:h", "grad:v"]} {
    return %d, %v
  }
}
// -----
// expected-error@+3 {{param:w is tensor<8xf32> @[a] in @stage_0.backward and tensor<8xf32> @[_] in @stage_0.forward}}
module @m attributes {level = staged} {
  func @stage_0.forward(%w: tensor<8xf32> @[_]) -> () attributes {stage = 0, phase = "forward", args = ["param:w"], results = []} { return }
  func @stage_0.backward(%w: tensor<8xf32> @[a]) -> () attributes {stage = 0, phase = "backward", args = ["param:w"], results = []} {
    return
  }
}
// -----
module @m attributes {level = staged} {
  func @stage_0.forward(%x: tensor<8xf32> @[a]) -> (tensor<8xf32> @[a]) attributes {stage = 0, phase = "forward", args = ["input:x"], results = ["send:h"]} {
    return %x
  }
  // expected-error@+1 {{recv:h is tensor<8xf32> @[_] in @stage_1.forward and tensor<8xf32> @[a] in @stage_0.forward}}
  func @stage_1.forward(%h: tensor<8xf32> @[_]) -> () attributes {stage = 1, phase = "forward", args = ["recv:h"], results = []} {
    return
  }
}
// -----
module @m attributes {level = local} {
  func @stage_0.backward(%g: tensor<4xf32>) -> () attributes {stage = 0, phase = "backward", args = ["recv_grad:h"], results = []} {
    return
  }
  // expected-error@+1 {{send_grad:h is tensor<8xf32> in @stage_1.backward and tensor<4xf32> in @stage_0.backward}}
  func @stage_1.backward(%x: tensor<8xf32>) -> (tensor<8xf32>) attributes {stage = 1, phase = "backward", args = ["saved:x"], results = ["send_grad:h"]} {
    return %x
  }
}
// -----
module @m attributes {level = staged} {
  plan.parameter @w {layout = @[_]}
  func @stage_0.backward(%g: tensor<8xf32> @[_; sum a]) -> (tensor<8xf32> @[_; sum a]) attributes {stage = 0, phase = "backward", args = ["saved:g"], results = ["grad:w"]} {
    return %g
  }
  // expected-error@+1 {{grad:w of @stage_0.reduce_gradients is tensor<8xf32> @[_; sum a], and the parameter lies at @[_]}}
  func @stage_0.reduce_gradients(%g: tensor<8xf32> @[_; sum a]) -> (tensor<8xf32> @[_; sum a]) attributes {stage = 0, phase = "reduce_gradients", args = ["grad:w"], results = ["grad:w"]} {
    return %g
  }
}
// -----
module @m attributes {level = staged} {
  plan.parameter @w {layout = @[_]}
  // expected-error@+1 {{grad:w of @stage_0.backward is tensor<8xf32> @[_; sum a], and the parameter lies at @[_]}}
  func @stage_0.backward(%g: tensor<8xf32> @[_; sum a]) -> (tensor<8xf32> @[_; sum a]) attributes {stage = 0, phase = "backward", args = ["saved:g"], results = ["grad:w"]} {
    return %g
  }
}
// -----
module @m attributes {level = staged} {
  plan.parameter @w {layout = @[a]}
  // expected-error@+1 {{param:w of @stage_0.forward is tensor<8xf32> @[_], and the parameter lies at @[a]}}
  func @stage_0.forward(%w: tensor<8xf32> @[_]) -> () attributes {stage = 0, phase = "forward", args = ["param:w"], results = []} {
    return
  }
}
// -----
module @m attributes {level = staged} {
  plan.mesh @mesh {axes = #axes<a = 2, b = 2>, stages = 1, world = 4}
  // expected-error@+1 {{the loss that @stage_0.forward returns is whole over b: the sum over devices counts it more than once}}
  func @stage_0.forward(%x: tensor<f32> @[; sum a]) -> (tensor<f32> @[; sum a]) attributes {stage = 0, phase = "forward", args = ["saved:x"], results = ["loss"]} {
    return %x
  }
}
