// RUN: uniap-opt %s -p prefetch-parameters | filecheck %s

module @m attributes {level = local} {
  func @block.forward(%x: tensor<2x8xf32>, %w: tensor<8x8xf32>) -> (tensor<2x8xf32>) attributes {kind = "forward"} {
    %y = nn.contract(%x, %w) {equation = "b k, n k -> b n"} : tensor<2x8xf32>
    return %y
  }

  // The first gather starts at once, the others one layer ahead: at most two layers' parameters are whole at a time.
  // CHECK-LABEL: func @stage_0.forward(
  // CHECK:         %g0.handle = comm.all_gather_start(%w0) {dim = 0, group = "a"}
  // CHECK-NEXT:    %g1.handle = comm.all_gather_start(%w1) {dim = 0, group = "a"}
  // CHECK-NEXT:    %g0 = comm.wait(%g0.handle)
  // CHECK-NEXT:    %h0 = plan.call @block.forward(%x, %g0)
  // CHECK-NEXT:    %g2.handle = comm.all_gather_start(%w2)
  // CHECK-NEXT:    %g1 = comm.wait(%g1.handle)
  // CHECK-NEXT:    %h1 = plan.call @block.forward(%h0, %g1)
  // CHECK-NEXT:    %g2 = comm.wait(%g2.handle)
  // CHECK-NEXT:    %a = comm.all_gather(%h1)
  // CHECK-NEXT:    %h2 = plan.call @block.forward(%a, %g2)
  func @stage_0.forward(%x: tensor<2x8xf32>, %w0: tensor<4x8xf32>, %w1: tensor<4x8xf32>, %w2: tensor<4x8xf32>) -> (tensor<2x8xf32>)
      attributes {kind = "segment", stage = 0, phase = "forward", args = ["recv:x", "param:w0", "param:w1", "param:w2"], results = ["send:y"]} {
    %g0 = comm.all_gather(%w0) {dim = 0, group = "a"} : tensor<8x8xf32>
    %h0 = plan.call @block.forward(%x, %g0) : tensor<2x8xf32>
    %g1 = comm.all_gather(%w1) {dim = 0, group = "a"} : tensor<8x8xf32>
    %h1 = plan.call @block.forward(%h0, %g1) : tensor<2x8xf32>
    %g2 = comm.all_gather(%w2) {dim = 0, group = "a"} : tensor<8x8xf32>
    // An activation is not there before it is computed: its gather stays where it is.
    %a = comm.all_gather(%h1) {dim = 0, group = "a"} : tensor<2x8xf32>
    %h2 = plan.call @block.forward(%a, %g2) : tensor<2x8xf32>
    return %h2
  }

  // Once per step nothing computes meanwhile.
  // CHECK-LABEL: func @stage_0.refresh_parameters(
  // CHECK-NOT:     comm.all_gather_start
  func @stage_0.refresh_parameters(%w0: tensor<4x8xf32>) -> (tensor<8x8xf32>)
      attributes {kind = "segment", stage = 0, phase = "refresh_parameters", args = ["param:w0"], results = ["param:w0@copy0"]} {
    %g0 = comm.all_gather(%w0) {dim = 0, group = "a"} : tensor<8x8xf32>
    return %g0
  }
}
