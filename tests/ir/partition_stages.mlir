// RUN: uniap-opt %s -p partition-stages | filecheck %s
// embed on stage 0 with shard=optimizer, head on stage 1 with shard=parameters; axis a is a data axis.

// The optimizer's shard is the home of embed.weight, the whole tensor that the layer reads a copy.
// CHECK: plan.parameter @embed.weight {{.*}}layout = @[a, _], {{.*}}home = true
// CHECK: plan.parameter @"embed.weight@copy0" {{.*}}layout = @[_, _], {{.*}}home = false
// CHECK: plan.parameter @head.weight {{.*}}stage = 1, layout = @[a, _], {{.*}}home = true

// The whole micro-batch arrives, and each device takes its part; what the next stage reads is sent.
// CHECK-LABEL: func @stage_0.forward(
// CHECK:       args = ["input:batch.0", "param:embed.weight@copy0"], results = ["send:embed", "saved:embed.relu"]} {
// CHECK-NEXT:    %[[X:.*]] = comm.slice(%batch.0) {axes = ["a"], dim = 0} : tensor<Bx4xf32> @[a, _]
// CHECK-NEXT:    plan.call @embed.dp2.forward(%[[X]], %"embed.weight@copy0")

// CHECK-LABEL: func @stage_0.backward(
// CHECK:       args = ["recv_grad:embed", "saved:embed.relu", "input:batch.0"], results = ["grad:embed.weight@copy0"]} {

// Once per step: the pending sum becomes the shard's gradient, and the new shard becomes the copy.
// CHECK-LABEL: func @stage_0.reduce_gradients(
// CHECK:         comm.reduce_scatter(%"embed.weight@copy0") {axes = ["a"], dim = 0} : tensor<8x4xf32> @[a, _]
// CHECK-LABEL: func @stage_0.refresh_parameters(
// CHECK:         comm.all_gather(%embed.weight) {axes = ["a"], dim = 0} : tensor<8x4xf32> @[_, _]

// In every micro-batch: gather before use, forward and backward, and reduce into the shard.
// CHECK-LABEL: func @stage_1.forward(
// CHECK:         %[[W:.*]] = comm.all_gather(%head.weight)
// CHECK-NEXT:    plan.call @head.dp2.forward(%embed, %[[W]])
// CHECK-LABEL: func @stage_1.backward(
// CHECK:         %[[V:.*]] = comm.all_gather(%head.weight)
// CHECK-NEXT:    %{{.*}}, %[[G:.*]] = plan.call @head.dp2.backward(%embed, %[[V]], %loss)
// CHECK-NEXT:    %[[S:.*]] = comm.reduce_scatter(%[[G]])
// CHECK-NEXT:    return %{{.*}}, %[[S]]
// CHECK-NOT:   func @stage_1.reduce_gradients

module @Net attributes {level = sharded, dtype = f32, optimizer = #optimizer<kind = "adamw", betas = [0.9, 0.999], eps = 1e-08, weight_decay = 0.01, no_decay = []>, global_batch = 8} {
  plan.mesh @mesh {axes = #axes<a = 2>, stages = 2, world = 4}
  plan.plan @plan {stages = 2, micro_batches = 2, schedule = "1f1b"}

  func @step(
      %batch.0: tensor<Bx4xf32> {role = "input", path = "batch.0"},
      %embed.weight: tensor<8x4xf32> {role = "param", path = "embed.weight", grad = true},
      %head.weight: tensor<2x8xf32> {role = "param", path = "head.weight", grad = true}
  ) -> (tensor<f32>, tensor<8x4xf32>, tensor<2x8xf32>) attributes {results = ["loss", "grad:embed.weight", "grad:head.weight"], kind = "step"} {
    %embed, %embed.relu_2 = plan.call @embed.dp2.forward(%batch.0, %embed.weight) {layer = "embed", phase = "forward", stage = 0, strategy = #strategy<dp = 2, tp = 1, boundary = "replicated", shard = "optimizer", recompute = "none">} : tensor<Bx8xf32>, tensor<Bx8xf32>
    %loss = plan.call @head.dp2.forward(%embed, %head.weight) {layer = "head", phase = "forward", stage = 1, strategy = #strategy<dp = 2, tp = 1, boundary = "replicated", shard = "parameters", recompute = "none">} : tensor<f32>
    %d.loss = aten.full() {size = [], fill_value = 1.0, dtype = f32} : tensor<f32>
    %d.embed, %d.head.weight = plan.call @head.dp2.backward(%embed, %head.weight, %d.loss) {layer = "head", phase = "backward", stage = 1, strategy = #strategy<dp = 2, tp = 1, boundary = "replicated", shard = "parameters", recompute = "none">} : tensor<Bx8xf32>, tensor<2x8xf32>
    %d.embed.weight = plan.call @embed.dp2.backward(%batch.0, %embed.relu_2, %d.embed) {layer = "embed", phase = "backward", stage = 0, strategy = #strategy<dp = 2, tp = 1, boundary = "replicated", shard = "optimizer", recompute = "none">} : tensor<8x4xf32>
    return %loss, %d.embed.weight, %d.head.weight
  }

  func @embed.dp2.forward(
      %input_0: tensor<Bx4xf32> @[a, _] {role = "input", path = "batch.0"},
      %weight: tensor<8x4xf32> @[_, _] {role = "param", grad = true}
  ) -> (tensor<Bx8xf32> @[a, _], tensor<Bx8xf32> @[a, _]) attributes {kind = "forward", results = ["value", "saved"]} {
    %contract = nn.contract(%input_0, %weight) {equation = "b k, n k -> b n", rule = #rule<b k, n k -> b n | sum k | linear 0 | linear 1 | size b=B k=4 n=8>, split = #split<a = b>} : tensor<Bx8xf32> @[a, _]
    %relu = aten.relu(%contract) {rule = #rule<d0 d1 -> d0 d1 | size d0=B d1=8>, split = #split<a = d0>} : tensor<Bx8xf32> @[a, _]
    return %relu, %relu
  }

  func @embed.dp2.backward(
      %input_0: tensor<Bx4xf32> @[a, _] {role = "input", path = "batch.0"},
      %relu: tensor<Bx8xf32> @[a, _] {role = "saved", of = "relu"},
      %d.relu: tensor<Bx8xf32> @[a, _] {role = "tangent", of = "relu"}
  ) -> (tensor<8x4xf32> @[_, _; sum a]) attributes {kind = "backward", of = "embed.dp2.forward", results = ["grad:weight"]} {
    %threshold_backward = aten.threshold_backward(%d.relu, %relu) {threshold = 0, rule = #rule<d0 d1, d0 d1 -> d0 d1 | linear 0 | size d0=B d1=8>, split = #split<a = d0>} : tensor<Bx8xf32> @[a, _]
    %d.weight = nn.contract(%threshold_backward, %input_0) {equation = "b n, b k -> n k", rule = #rule<b n, b k -> n k | sum b | linear 0 | linear 1 | size b=B n=8 k=4>, split = #split<a = b>} : tensor<8x4xf32> @[_, _; sum a]
    return %d.weight
  }

  func @head.dp2.forward(
      %x: tensor<Bx8xf32> @[a, _] {role = "activation", grad = true},
      %weight: tensor<2x8xf32> @[_, _] {role = "param", grad = true}
  ) -> (tensor<f32> @[;sum a]) attributes {kind = "forward", results = ["value"]} {
    %contract = nn.contract(%x, %weight) {equation = "b k, n k -> b n", rule = #rule<b k, n k -> b n | sum k | linear 0 | linear 1 | size b=B k=8 n=2>, split = #split<a = b>} : tensor<Bx2xf32> @[a, _]
    %sum = aten.sum(%contract) {rule = #rule<d0 d1 -> [] | sum d0 d1 | linear 0 | size d0=B d1=2>, split = #split<a = d0>} : tensor<f32> @[;sum a]
    return %sum
  }

  func @head.dp2.backward(
      %x: tensor<Bx8xf32> @[a, _] {role = "activation"},
      %weight: tensor<2x8xf32> @[_, _] {role = "param"},
      %d.sum: tensor<f32> @[] {role = "tangent", of = "sum"}
  ) -> (tensor<Bx8xf32> @[a, _], tensor<2x8xf32> @[_, _; sum a]) attributes {kind = "backward", of = "head.dp2.forward", results = ["grad:x", "grad:weight"]} {
    %expand = aten.expand(%d.sum) {size = [B, 2], rule = #rule<[] -> d0 d1 | linear 0 | size d0=B d1=2>, split = #split<a = d0>} : tensor<Bx2xf32> @[a, _]
    %d.x = nn.contract(%expand, %weight) {equation = "b n, n k -> b k", rule = #rule<b n, n k -> b k | sum n | linear 0 | linear 1 | size b=B n=2 k=8>, split = #split<a = b>} : tensor<Bx8xf32> @[a, _]
    %d.weight = nn.contract(%expand, %x) {equation = "b n, b k -> n k", rule = #rule<b n, b k -> n k | sum b | linear 0 | linear 1 | size b=B n=2 k=8>, split = #split<a = b>} : tensor<2x8xf32> @[_, _; sum a]
    return %d.x, %d.weight
  }
}
