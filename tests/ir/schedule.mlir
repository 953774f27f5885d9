// RUN: uniap-opt %s -p schedule | filecheck %s
// 1F1B on two stages, two micro-batches: the first stage is one forward ahead, the last alternates.

// CHECK: sched.stage @stage_0 {table = [["forward", 0], ["send", "embed", 0], ["forward", 1], ["send", "embed", 1], ["recv_grad", "embed", 0], ["backward", 0], ["recv_grad", "embed", 1], ["backward", 1]]}
// CHECK: sched.stage @stage_1 {table = [["recv", "embed", 0], ["forward", 0], ["backward", 0], ["send_grad", "embed", 0], ["recv", "embed", 1], ["forward", 1], ["backward", 1], ["send_grad", "embed", 1]]}

module @Net attributes {level = local, dtype = f32, optimizer = #optimizer<kind = "adamw", betas = [0.9, 0.999], eps = 1e-08, weight_decay = 0.01, no_decay = []>, global_batch = 8} {
  plan.mesh @mesh {axes = #axes<a = 2>, stages = 2, world = 4}
  plan.plan @plan {stages = 2, micro_batches = 2, schedule = "1f1b"}
  plan.parameter @embed.weight {of = "embed.weight", shape = [8, 4], dtype = "f32", stage = 0, layout = @[a, _], shard = "optimizer", grad = true, home = true, aliases = []}
  plan.parameter @"embed.weight@copy0" {of = "embed.weight", shape = [8, 4], dtype = "f32", stage = 0, layout = @[_, _], shard = "optimizer", grad = true, home = false, aliases = []}
  plan.parameter @head.weight {of = "head.weight", shape = [2, 8], dtype = "f32", stage = 1, layout = @[a, _], shard = "parameters", grad = true, home = true, aliases = []}
  plan.input @batch.0 {shape = [4, 4], dtype = "f32", stages = [0]}

  func @embed.dp2.forward(
      %input_0: tensor<2x4xf32> {role = "input", path = "batch.0"},
      %weight: tensor<8x4xf32> {role = "param", grad = true}
  ) -> (tensor<2x8xf32>, tensor<2x8xf32>) attributes {kind = "forward", results = ["value", "saved"]} {
    %contract = nn.contract(%input_0, %weight) {equation = "b k, n k -> b n"} : tensor<2x8xf32>
    %relu = aten.relu(%contract) : tensor<2x8xf32>
    return %relu, %relu
  }

  func @embed.dp2.backward(
      %input_0: tensor<2x4xf32> {role = "input", path = "batch.0"},
      %relu: tensor<2x8xf32> {role = "saved", of = "relu"},
      %d.relu: tensor<2x8xf32> {role = "tangent", of = "relu"}
  ) -> (tensor<8x4xf32>) attributes {kind = "backward", of = "embed.dp2.forward", results = ["grad:weight"]} {
    %threshold_backward = aten.threshold_backward(%d.relu, %relu) {threshold = 0} : tensor<2x8xf32>
    %d.weight = nn.contract(%threshold_backward, %input_0) {equation = "b n, b k -> n k"} : tensor<8x4xf32>
    return %d.weight
  }

  func @head.dp2.forward(
      %x: tensor<2x8xf32> {role = "activation", grad = true},
      %weight: tensor<2x8xf32> {role = "param", grad = true}
  ) -> (tensor<f32>) attributes {kind = "forward", results = ["value"]} {
    %contract = nn.contract(%x, %weight) {equation = "b k, n k -> b n"} : tensor<2x2xf32>
    %sum = aten.sum(%contract) : tensor<f32>
    return %sum
  }

  func @head.dp2.backward(
      %x: tensor<2x8xf32> {role = "activation"},
      %weight: tensor<2x8xf32> {role = "param"},
      %d.sum: tensor<f32> {role = "tangent", of = "sum"}
  ) -> (tensor<2x8xf32>, tensor<2x8xf32>) attributes {kind = "backward", of = "head.dp2.forward", results = ["grad:x", "grad:weight"]} {
    %expand = aten.expand(%d.sum) {size = [2, 2]} : tensor<2x2xf32>
    %d.x = nn.contract(%expand, %weight) {equation = "b n, n k -> b k"} : tensor<2x8xf32>
    %d.weight = nn.contract(%expand, %x) {equation = "b n, b k -> n k"} : tensor<2x8xf32>
    return %d.x, %d.weight
  }

  func @stage_0.forward(
      %batch.0: tensor<4x4xf32>,
      %"embed.weight@copy0": tensor<8x4xf32>
  ) -> (tensor<2x8xf32>, tensor<2x8xf32>) attributes {kind = "segment", stage = 0, phase = "forward", args = ["input:batch.0", "param:embed.weight@copy0"], results = ["send:embed", "saved:embed.relu"]} {
    %batch.0_1 = comm.slice(%batch.0) {dim = 0, group = "a"} : tensor<2x4xf32>
    %embed, %embed.relu_2 = plan.call @embed.dp2.forward(%batch.0_1, %"embed.weight@copy0") {layer = "embed"} : tensor<2x8xf32>, tensor<2x8xf32>
    return %embed, %embed.relu_2
  }

  func @stage_0.backward(
      %embed: tensor<2x8xf32>,
      %embed.relu: tensor<2x8xf32>,
      %batch.0: tensor<4x4xf32>
  ) -> (tensor<8x4xf32>) attributes {kind = "segment", stage = 0, phase = "backward", args = ["recv_grad:embed", "saved:embed.relu", "input:batch.0"], results = ["grad:embed.weight@copy0"]} {
    %batch.0_1 = comm.slice(%batch.0) {dim = 0, group = "a"} : tensor<2x4xf32>
    %embed.weight.grad = plan.call @embed.dp2.backward(%batch.0_1, %embed.relu, %embed) {layer = "embed"} : tensor<8x4xf32>
    return %embed.weight.grad
  }

  func @stage_0.reduce_gradients(
      %"embed.weight@copy0": tensor<8x4xf32>
  ) -> (tensor<4x4xf32>) attributes {kind = "segment", stage = 0, phase = "reduce_gradients", args = ["grad:embed.weight@copy0"], results = ["grad:embed.weight"]} {
    %"embed.weight@copy0_1" = comm.reduce_scatter(%"embed.weight@copy0") {dim = 0, group = "a"} : tensor<4x4xf32>
    return %"embed.weight@copy0_1"
  }

  func @stage_0.refresh_parameters(
      %embed.weight: tensor<4x4xf32>
  ) -> (tensor<8x4xf32>) attributes {kind = "segment", stage = 0, phase = "refresh_parameters", args = ["param:embed.weight"], results = ["param:embed.weight@copy0"]} {
    %embed.weight_1 = comm.all_gather(%embed.weight) {dim = 0, group = "a"} : tensor<8x4xf32>
    return %embed.weight_1
  }

  func @stage_1.forward(
      %embed: tensor<2x8xf32>,
      %head.weight: tensor<1x8xf32>
  ) -> (tensor<2x8xf32>, tensor<f32>) attributes {kind = "segment", stage = 1, phase = "forward", args = ["recv:embed", "param:head.weight"], results = ["saved:embed", "loss"]} {
    %head.weight_1.handle = comm.all_gather_start(%head.weight) {dim = 0, group = "a"} : tensor<2x8xf32>
    %head.weight_1 = comm.wait(%head.weight_1.handle) : tensor<2x8xf32>
    %loss = plan.call @head.dp2.forward(%embed, %head.weight_1) {layer = "head"} : tensor<f32>
    return %embed, %loss
  }

  func @stage_1.backward(
      %embed: tensor<2x8xf32>,
      %head.weight: tensor<1x8xf32>,
      %loss: tensor<f32>
  ) -> (tensor<2x8xf32>, tensor<1x8xf32>) attributes {kind = "segment", stage = 1, phase = "backward", args = ["saved:embed", "param:head.weight", "seed:loss"], results = ["send_grad:embed", "grad:head.weight"]} {
    %head.weight_1.handle = comm.all_gather_start(%head.weight) {dim = 0, group = "a"} : tensor<2x8xf32>
    %head.weight_1 = comm.wait(%head.weight_1.handle) : tensor<2x8xf32>
    %head.x.grad, %head.weight.grad = plan.call @head.dp2.backward(%embed, %head.weight_1, %loss) {layer = "head"} : tensor<2x8xf32>, tensor<2x8xf32>
    %head.weight.grad_1 = comm.reduce_scatter(%head.weight.grad) {dim = 0, group = "a"} : tensor<1x8xf32>
    return %head.x.grad, %head.weight.grad_1
  }
}
