// RUN: uniap-opt %s -p localize | filecheck %s
// A global batch of 8 in 2 micro-batches on 2 devices of a stage: 4 rows arrive, 2 are a device's own.

// CHECK: plan.input @batch.0 {shape = [4, 4]

// CHECK-LABEL: func @embed.dp2.forward(
// CHECK-NEXT:      %input_0: tensor<2x4xf32> {
// CHECK:         %contract = nn.contract(%input_0, %weight) {equation = "b k, n k -> b n"} : tensor<2x8xf32>

// Attributes that hold sizes are local too; rules and splits are gone.
// CHECK-LABEL: func @head.dp2.backward(
// CHECK:         aten.expand(%d.sum) {size = [2, 2]} : tensor<2x2xf32>
// CHECK-NOT:   rule
// CHECK-NOT:   split

// Axes have become process groups.
// CHECK-LABEL: func @stage_0.forward(
// CHECK-NEXT:      %batch.0: tensor<4x4xf32>
// CHECK:         comm.slice(%batch.0) {dim = 0, group = "a"} : tensor<2x4xf32>
// CHECK-LABEL: func @stage_0.reduce_gradients(
// CHECK:         comm.reduce_scatter({{.*}}) {dim = 0, group = "a"} : tensor<4x4xf32>
// CHECK-LABEL: func @stage_1.forward(
// CHECK:         comm.all_gather(%head.weight) {dim = 0, group = "a"} : tensor<2x8xf32>

module @Net attributes {level = staged, dtype = f32, optimizer = #optimizer<kind = "adamw", betas = [0.9, 0.999], eps = 1e-08, weight_decay = 0.01, no_decay = []>, global_batch = 8} {
  plan.mesh @mesh {axes = #axes<a = 2>, stages = 2, world = 4}
  plan.plan @plan {stages = 2, micro_batches = 2, schedule = "1f1b"}
  plan.parameter @embed.weight {of = "embed.weight", shape = [8, 4], dtype = "f32", stage = 0, layout = @[a, _], shard = "optimizer", grad = true, home = true, aliases = []}
  plan.parameter @"embed.weight@copy0" {of = "embed.weight", shape = [8, 4], dtype = "f32", stage = 0, layout = @[_, _], shard = "optimizer", grad = true, home = false, aliases = []}
  plan.parameter @head.weight {of = "head.weight", shape = [2, 8], dtype = "f32", stage = 1, layout = @[a, _], shard = "parameters", grad = true, home = true, aliases = []}
  plan.input @batch.0 {shape = [B, 4], dtype = "f32", stages = [0]}

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

  func @stage_0.forward(
      %batch.0: tensor<Bx4xf32> @[_, _],
      %"embed.weight@copy0": tensor<8x4xf32> @[_, _]
  ) -> (tensor<Bx8xf32> @[a, _], tensor<Bx8xf32> @[a, _]) attributes {kind = "segment", stage = 0, phase = "forward", args = ["input:batch.0", "param:embed.weight@copy0"], results = ["send:embed", "saved:embed.relu"]} {
    %batch.0_1 = comm.slice(%batch.0) {axes = ["a"], dim = 0} : tensor<Bx4xf32> @[a, _]
    %embed, %embed.relu_2 = plan.call @embed.dp2.forward(%batch.0_1, %"embed.weight@copy0") {layer = "embed"} : tensor<Bx8xf32> @[a, _], tensor<Bx8xf32> @[a, _]
    return %embed, %embed.relu_2
  }

  func @stage_0.backward(
      %embed: tensor<Bx8xf32> @[a, _],
      %embed.relu: tensor<Bx8xf32> @[a, _],
      %batch.0: tensor<Bx4xf32> @[_, _]
  ) -> (tensor<8x4xf32> @[_, _; sum a]) attributes {kind = "segment", stage = 0, phase = "backward", args = ["recv_grad:embed", "saved:embed.relu", "input:batch.0"], results = ["grad:embed.weight@copy0"]} {
    %batch.0_1 = comm.slice(%batch.0) {axes = ["a"], dim = 0} : tensor<Bx4xf32> @[a, _]
    %embed.weight.grad = plan.call @embed.dp2.backward(%batch.0_1, %embed.relu, %embed) {layer = "embed"} : tensor<8x4xf32> @[_, _; sum a]
    return %embed.weight.grad
  }

  func @stage_0.reduce_gradients(
      %"embed.weight@copy0": tensor<8x4xf32> @[_, _; sum a]
  ) -> (tensor<8x4xf32> @[a, _]) attributes {kind = "segment", stage = 0, phase = "reduce_gradients", args = ["grad:embed.weight@copy0"], results = ["grad:embed.weight"]} {
    %"embed.weight@copy0_1" = comm.reduce_scatter(%"embed.weight@copy0") {axes = ["a"], dim = 0} : tensor<8x4xf32> @[a, _]
    return %"embed.weight@copy0_1"
  }

  func @stage_0.refresh_parameters(
      %embed.weight: tensor<8x4xf32> @[a, _]
  ) -> (tensor<8x4xf32> @[_, _]) attributes {kind = "segment", stage = 0, phase = "refresh_parameters", args = ["param:embed.weight"], results = ["param:embed.weight@copy0"]} {
    %embed.weight_1 = comm.all_gather(%embed.weight) {axes = ["a"], dim = 0} : tensor<8x4xf32> @[_, _]
    return %embed.weight_1
  }

  func @stage_1.forward(
      %embed: tensor<Bx8xf32> @[a, _],
      %head.weight: tensor<2x8xf32> @[a, _]
  ) -> (tensor<Bx8xf32> @[a, _], tensor<f32> @[;sum a]) attributes {kind = "segment", stage = 1, phase = "forward", args = ["recv:embed", "param:head.weight"], results = ["saved:embed", "loss"]} {
    %head.weight_1 = comm.all_gather(%head.weight) {axes = ["a"], dim = 0} : tensor<2x8xf32> @[_, _]
    %loss = plan.call @head.dp2.forward(%embed, %head.weight_1) {layer = "head"} : tensor<f32> @[;sum a]
    return %embed, %loss
  }

  func @stage_1.backward(
      %embed: tensor<Bx8xf32> @[a, _],
      %head.weight: tensor<2x8xf32> @[a, _],
      %loss: tensor<f32> @[]
  ) -> (tensor<Bx8xf32> @[a, _], tensor<2x8xf32> @[a, _]) attributes {kind = "segment", stage = 1, phase = "backward", args = ["saved:embed", "param:head.weight", "seed:loss"], results = ["send_grad:embed", "grad:head.weight"]} {
    %head.weight_1 = comm.all_gather(%head.weight) {axes = ["a"], dim = 0} : tensor<2x8xf32> @[_, _]
    %head.x.grad, %head.weight.grad = plan.call @head.dp2.backward(%embed, %head.weight_1, %loss) {layer = "head"} : tensor<Bx8xf32> @[a, _], tensor<2x8xf32> @[_, _; sum a]
    %head.weight.grad_1 = comm.reduce_scatter(%head.weight.grad) {axes = ["a"], dim = 0} : tensor<2x8xf32> @[a, _]
    return %head.x.grad, %head.weight.grad_1
  }
}
