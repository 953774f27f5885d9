// RUN: uniap-opt %s -p insert-communication | filecheck %s
// Two layers on two stages of two devices each: axis a is a data axis of both.

// The step calls the func of its kind and strategy.
// CHECK-LABEL: func @step(
// CHECK:         plan.call @embed.dp2.forward(
// CHECK:         plan.call @head.dp2.forward(
// CHECK:         plan.call @head.dp2.backward(
// CHECK:         plan.call @embed.dp2.backward(

// The batch is split over a; the parameter is whole.
// CHECK-LABEL: func @embed.dp2.forward(
// CHECK-NEXT:      %input_0: tensor<Bx4xf32> @[a, _]
// CHECK-NEXT:      %weight: tensor<8x4xf32> @[_, _]
// CHECK:         %contract = nn.contract({{.*}}split = #split<a = b>} : tensor<Bx8xf32> @[a, _]

// Its gradient leaves as a pending sum: it is reduced once per step, not here.
// CHECK-LABEL: func @embed.dp2.backward(
// CHECK-NOT:     comm.
// CHECK:         %d.weight = nn.contract({{.*}}split = #split<a = b>} : tensor<8x4xf32> @[_, _; sum a]
// CHECK-NEXT:    return %d.weight

// The loss is the sum of what the devices hold; its tangent is whole.
// CHECK-LABEL: func @head.dp2.forward(
// CHECK:         %sum = aten.sum(%contract) {{.*}} : tensor<f32> @[;sum a]
// CHECK-LABEL: func @head.dp2.backward(
// CHECK:           %d.sum: tensor<f32> @[] {role = "tangent", of = "sum"}

module @Net attributes {level = planned, dtype = f32, optimizer = #optimizer<kind = "adamw", betas = [0.9, 0.999], eps = 1e-08, weight_decay = 0.01, no_decay = []>, global_batch = 8} {
  plan.mesh @mesh {axes = #axes<a = 2>, stages = 2, world = 4}
  plan.plan @plan {stages = 2, micro_batches = 2, schedule = "1f1b"}

  func @embed.forward(
      %input_0: tensor<Bx4xf32> {role = "input", path = "batch.0"},
      %weight: tensor<8x4xf32> {role = "param", grad = true}
  ) -> (tensor<Bx8xf32>, tensor<Bx8xf32>) attributes {kind = "forward", results = ["value", "saved"]} {
    %contract = nn.contract(%input_0, %weight) {equation = "b k, n k -> b n", rule = #rule<b k, n k -> b n | sum k | linear 0 | linear 1 | size b=B k=4 n=8>} : tensor<Bx8xf32>
    %relu = aten.relu(%contract) {rule = #rule<d0 d1 -> d0 d1 | size d0=B d1=8>} : tensor<Bx8xf32>
    return %relu, %relu
  }

  func @embed.backward(
      %input_0: tensor<Bx4xf32> {role = "input", path = "batch.0"},
      %relu: tensor<Bx8xf32> {role = "saved", of = "relu"},
      %d.relu: tensor<Bx8xf32> {role = "tangent", of = "relu"}
  ) -> (tensor<8x4xf32>) attributes {kind = "backward", of = @embed.forward, results = ["grad:weight"]} {
    %threshold_backward = aten.threshold_backward(%d.relu, %relu) {threshold = 0, rule = #rule<d0 d1, d0 d1 -> d0 d1 | linear 0 | size d0=B d1=8>} : tensor<Bx8xf32>
    %d.weight = nn.contract(%threshold_backward, %input_0) {equation = "b n, b k -> n k", rule = #rule<b n, b k -> n k | sum b | linear 0 | linear 1 | size b=B n=8 k=4>} : tensor<8x4xf32>
    return %d.weight
  }

  func @head.forward(
      %x: tensor<Bx8xf32> {role = "activation", grad = true},
      %weight: tensor<2x8xf32> {role = "param", grad = true}
  ) -> (tensor<f32>) attributes {kind = "forward", results = ["value"]} {
    %contract = nn.contract(%x, %weight) {equation = "b k, n k -> b n", rule = #rule<b k, n k -> b n | sum k | linear 0 | linear 1 | size b=B k=8 n=2>} : tensor<Bx2xf32>
    %sum = aten.sum(%contract) {rule = #rule<d0 d1 -> [] | sum d0 d1 | linear 0 | size d0=B d1=2>} : tensor<f32>
    return %sum
  }

  func @head.backward(
      %x: tensor<Bx8xf32> {role = "activation"},
      %weight: tensor<2x8xf32> {role = "param"},
      %d.sum: tensor<f32> {role = "tangent", of = "sum"}
  ) -> (tensor<Bx8xf32>, tensor<2x8xf32>) attributes {kind = "backward", of = @head.forward, results = ["grad:x", "grad:weight"]} {
    %expand = aten.expand(%d.sum) {size = [B, 2], rule = #rule<[] -> d0 d1 | linear 0 | size d0=B d1=2>} : tensor<Bx2xf32>
    %d.x = nn.contract(%expand, %weight) {equation = "b n, n k -> b k", rule = #rule<b n, n k -> b k | sum n | linear 0 | linear 1 | size b=B n=2 k=8>} : tensor<Bx8xf32>
    %d.weight = nn.contract(%expand, %x) {equation = "b n, b k -> n k", rule = #rule<b n, b k -> n k | sum b | linear 0 | linear 1 | size b=B n=2 k=8>} : tensor<2x8xf32>
    return %d.x, %d.weight
  }

  func @step(
      %batch.0: tensor<Bx4xf32> {role = "input", path = "batch.0"},
      %embed.weight: tensor<8x4xf32> {role = "param", path = "embed.weight", grad = true},
      %head.weight: tensor<2x8xf32> {role = "param", path = "head.weight", grad = true}
  ) -> (tensor<f32>, tensor<8x4xf32>, tensor<2x8xf32>) attributes {results = ["loss", "grad:embed.weight", "grad:head.weight"], kind = "step"} {
    %embed, %embed.relu = plan.call @embed.forward(%batch.0, %embed.weight) {layer = "embed", phase = "forward", stage = 0, strategy = #strategy<dp = 2, tp = 1, boundary = "replicated", shard = "optimizer", recompute = "none">} : tensor<Bx8xf32>, tensor<Bx8xf32>
    %loss = plan.call @head.forward(%embed, %head.weight) {layer = "head", phase = "forward", stage = 1, strategy = #strategy<dp = 2, tp = 1, boundary = "replicated", shard = "parameters", recompute = "none">} : tensor<f32>
    %d.loss = aten.full() {size = [], fill_value = 1.0, dtype = f32} : tensor<f32>
    %d.embed, %d.head.weight = plan.call @head.backward(%embed, %head.weight, %d.loss) {layer = "head", phase = "backward", stage = 1, strategy = #strategy<dp = 2, tp = 1, boundary = "replicated", shard = "parameters", recompute = "none">} : tensor<Bx8xf32>, tensor<2x8xf32>
    %d.embed.weight = plan.call @embed.backward(%batch.0, %embed.relu, %d.embed) {layer = "embed", phase = "backward", stage = 0, strategy = #strategy<dp = 2, tp = 1, boundary = "replicated", shard = "optimizer", recompute = "none">} : tensor<8x4xf32>
    return %loss, %d.embed.weight, %d.head.weight
  }
}
