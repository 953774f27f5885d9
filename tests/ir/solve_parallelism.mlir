// RUN: uniap-opt %s -p solve-parallelism | filecheck %s

// Forced: two stages and four micro-batches.  The rest is the solver's: one device in a stage leaves it no choice but
// recomputation, which costs time and is not needed.
// CHECK: module @m attributes {level = planned
// CHECK: plan.mesh @mesh {axes = #axes<>, stages = 2, world = 2}
// CHECK: plan.plan @plan {stages = 2, micro_batches = 4, schedule = "1f1b", status = "optimal", objective = 0.00{{[0-9]+}}
// CHECK-SAME: simulated = 0.00{{[0-9]+}}
// Stage 0 has one weight of 4096 bytes, its gradient twice and two moments; two micro-batches of 2 x 16 x 32 floats are in flight.
// CHECK: plan.stage @stage_0 {memory = {{[0-9]+}}, states = 20480, activations = 8192, working = 8192
// CHECK: plan.stage @stage_1 {memory = {{[0-9]+}}, states = 20480, activations = 4096
// CHECK: func @step
// CHECK: %h0 = plan.call @layer.forward(%x, %layers.0.w) {layer = "layers.0", phase = "forward", stage = 0, strategy = #strategy<dp = 1, tp = 1, boundary = "replicated", shard = "none", recompute = "none">}
// CHECK: %h1 = plan.call @layer.forward
// CHECK-SAME: stage = 1
// CHECK: plan.call @head.forward
// CHECK-SAME: stage = 1
// CHECK: plan.call @layer.backward(%h0
// CHECK-SAME: stage = 1
// CHECK: plan.call @layer.backward(%x
// CHECK-SAME: stage = 0

module @m attributes {level = annotated, global_batch = 8, optimizer = #optimizer<kind = "adamw">, force = "pp=2,micro_batches=4"} {
  plan.cluster @two {nodes = 1, devices_per_node = 2, memory_reserve = 0.0, device = #device<kind = "cpu", memory = 1000000000.0, memory_bandwidth = 1e10, launch = 1e-06, flops = #flops<f32 = 1e9>>, links = #links<intra = #intra<bandwidth = 1e9, latency = 1e-06>>}

  func @layer.forward(
      %x: tensor<Bx16x32xf32> {role = "activation", grad = true},
      %w: tensor<32x32xf32> {role = "param", grad = true}
  ) -> (tensor<Bx16x32xf32>) attributes {kind = "forward", results = ["value"]} {
    %y = nn.contract(%x, %w) {equation = "b s k, n k -> b s n", rule = #rule<b s k, n k -> b s n | sum k | linear 0 | linear 1 | size b=B s=16 k=32 n=32>} : tensor<Bx16x32xf32>
    return %y
  }
  func @layer.backward(
      %x: tensor<Bx16x32xf32> {role = "activation"},
      %w: tensor<32x32xf32> {role = "param"},
      %d.y: tensor<Bx16x32xf32> {role = "tangent", of = "y"}
  ) -> (tensor<Bx16x32xf32>, tensor<32x32xf32>) attributes {kind = "backward", of = @layer.forward, results = ["grad:x", "grad:w"]} {
    %d.x = nn.contract(%d.y, %w) {equation = "b s n, n k -> b s k", rule = #rule<b s n, n k -> b s k | sum n | linear 0 | linear 1 | size b=B s=16 k=32 n=32>} : tensor<Bx16x32xf32>
    %d.w = nn.contract(%d.y, %x) {equation = "b s n, b s k -> n k", rule = #rule<b s n, b s k -> n k | sum b s | linear 0 | linear 1 | size b=B s=16 k=32 n=32>} : tensor<32x32xf32>
    return %d.x, %d.w
  }
  func @head.forward(
      %x: tensor<Bx16x32xf32> {role = "activation", grad = true}
  ) -> (tensor<f32>) attributes {kind = "forward", results = ["value"]} {
    %loss = aten.sum(%x) {rule = #rule<b s k -> [] | sum b s k | linear 0 | size b=B s=16 k=32>} : tensor<f32>
    return %loss
  }
  func @head.backward(
      %d.loss: tensor<f32> {role = "tangent", of = "loss"}
  ) -> (tensor<Bx16x32xf32>) attributes {kind = "backward", of = @head.forward, results = ["grad:x"]} {
    %d.x = aten.expand(%d.loss) {size = [B, 16, 32], rule = #rule<[] -> b s k | linear 0 | size b=B s=16 k=32>} : tensor<Bx16x32xf32>
    return %d.x
  }
  func @step(
      %x: tensor<Bx16x32xf32> {role = "input", path = "batch.0"},
      %layers.0.w: tensor<32x32xf32> {role = "param", path = "layers.0.w", grad = true},
      %layers.1.w: tensor<32x32xf32> {role = "param", path = "layers.1.w", grad = true}
  ) -> (tensor<f32>, tensor<32x32xf32>, tensor<32x32xf32>) attributes {results = ["loss", "grad:layers.0.w", "grad:layers.1.w"]} {
    %h0 = plan.call @layer.forward(%x, %layers.0.w) {layer = "layers.0", phase = "forward"} : tensor<Bx16x32xf32>
    %h1 = plan.call @layer.forward(%h0, %layers.1.w) {layer = "layers.1", phase = "forward"} : tensor<Bx16x32xf32>
    %loss = plan.call @head.forward(%h1) {layer = "head", phase = "forward"} : tensor<f32>
    %one = aten.full() {size = [], fill_value = 1.0} : tensor<f32>
    %d.h1 = plan.call @head.backward(%one) {layer = "head", phase = "backward"} : tensor<Bx16x32xf32>
    %d.h0, %d.w1 = plan.call @layer.backward(%h0, %layers.1.w, %d.h1) {layer = "layers.1", phase = "backward"} : tensor<Bx16x32xf32>, tensor<32x32xf32>
    %d.x, %d.w0 = plan.call @layer.backward(%x, %layers.0.w, %d.h0) {layer = "layers.0", phase = "backward"} : tensor<Bx16x32xf32>, tensor<32x32xf32>
    return %loss, %d.w0, %d.w1
  }
}
