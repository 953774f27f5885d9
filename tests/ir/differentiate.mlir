// RUN: uniap-opt %s -p differentiate | filecheck %s

module @m attributes {level = layered} {
  // tanh is saved because its derivative reads it; the view of it is made again; the frozen scale gets no gradient.
  // CHECK-LABEL: func @block.forward
  // CHECK: attributes {kind = "forward", results = ["value", "saved"]}
  // CHECK: return %v, %t
  // CHECK-LABEL: func @block.backward
  // CHECK: %x: tensor<Bx8xf32> {role = "activation"},
  // CHECK-NEXT: %w: tensor<8x8xf32> {role = "param"},
  // CHECK-NEXT: %scale: tensor<8xf32> {role = "param"},
  // CHECK-NEXT: %t: tensor<Bx8xf32> {role = "saved", of = "t"},
  // CHECK-NEXT: %d.v: tensor<8*Bxf32> {role = "tangent", of = "v"}
  // CHECK-NEXT: ) -> (tensor<Bx8xf32>, tensor<8x8xf32>) attributes {kind = "backward", of = @block.forward, results = ["grad:x", "grad:w"]}
  // CHECK-NEXT: aten.view(%d.v) {size = [B, 8]} : tensor<Bx8xf32> loc("net.py":5 in "blocks.0")
  // CHECK-NEXT: aten.tanh_backward({{.*}}, %t) : tensor<Bx8xf32> loc("net.py":4 in "blocks.0")
  // CHECK-NEXT: %[[G:.*]] = aten.mul.Tensor({{.*}}, %scale)
  // CHECK-NEXT: %d.x = nn.contract(%[[G]], %w) {equation = "b n, n k -> b k"} : tensor<Bx8xf32> loc("net.py":3 in "blocks.0.up")
  // CHECK-NEXT: %d.w = nn.contract(%[[G]], %x) {equation = "b n, b k -> n k"}
  // CHECK-NEXT: return %d.x, %d.w
  func @block(
      %x: tensor<Bx8xf32> {role = "activation", grad = true},
      %w: tensor<8x8xf32> {role = "param", grad = true},
      %scale: tensor<8xf32> {role = "param", grad = false}
  ) -> (tensor<8*Bxf32>) attributes {kind = "layer", results = ["value"], grad = [true]} {
    %c = nn.contract(%x, %w) {equation = "b k, n k -> b n"} : tensor<Bx8xf32> loc("net.py":3 in "blocks.0.up")
    %m = aten.mul.Tensor(%c, %scale) : tensor<Bx8xf32> loc("net.py":3 in "blocks.0")
    %t = aten.tanh(%m) : tensor<Bx8xf32> loc("net.py":4 in "blocks.0")
    %v = aten.view(%t) {size = [8*B]} : tensor<8*Bxf32> loc("net.py":5 in "blocks.0")
    return %v
  }

  func @embed(%x: tensor<Bx8xf32> {role = "input", path = "batch"}, %w: tensor<8xf32> {role = "param", grad = true})
      -> (tensor<Bx8xf32>) attributes {kind = "layer", results = ["value"], grad = [true]} {
    %m = aten.mul.Tensor(%x, %w) : tensor<Bx8xf32>
    return %m
  }

  func @head(
      %x0: tensor<8*Bxf32> {role = "activation", grad = true},
      %x1: tensor<Bx8xf32> {role = "activation", grad = true}
  ) -> (tensor<f32>) attributes {kind = "layer", results = ["value"], grad = [true]} {
    %a = aten.sum(%x0) : tensor<f32>
    %b = aten.sum(%x1) : tensor<f32>
    %s = aten.add.Tensor(%a, %b) : tensor<f32>
    return %s
  }

  // The embedding is read by the block and by the head: its gradients are added.  %unused has none.
  // CHECK-LABEL: func @step
  // CHECK: attributes {results = ["loss", "grad:embed", "grad:up", "grad:unused"]
  // CHECK-NEXT: %h = plan.call @embed.forward(%x, %embed) {layer = "embed", phase = "forward"}
  // CHECK-NEXT: %y, %blocks.0.t = plan.call @block.forward(%h, %up, %scale) {layer = "blocks.0", phase = "forward"}
  // CHECK-NEXT: %loss = plan.call @head.forward(%y, %h) {layer = "head", phase = "forward"}
  // CHECK-NEXT: %d.loss = aten.full() {size = [], fill_value = 1.0, dtype = f32}
  // CHECK-NEXT: %d.y, %d.h = plan.call @head.backward(%d.loss) {layer = "head", phase = "backward"}
  // CHECK-NEXT: %d.h_1, %d.up = plan.call @block.backward(%h, %up, %scale, %blocks.0.t, %d.y)
  // CHECK-NEXT: %d.h_2 = aten.add.Tensor(%d.h, %d.h_1)
  // CHECK-NEXT: %d.embed = plan.call @embed.backward(%x, %d.h_2)
  // CHECK-NEXT: return %loss, %d.embed, %d.up, none
  func @main(
      %x: tensor<Bx8xf32> {role = "input", path = "batch"},
      %embed: tensor<8xf32> {role = "param", path = "embed", grad = true},
      %up: tensor<8x8xf32> {role = "param", path = "up", grad = true},
      %scale: tensor<8xf32> {role = "param", path = "scale", grad = false},
      %unused: tensor<8xf32> {role = "param", path = "unused", grad = true}
  ) -> (tensor<f32>) attributes {results = ["loss"]} {
    %h = plan.call @embed(%x, %embed) {layer = "embed"} : tensor<Bx8xf32>
    %y = plan.call @block(%h, %up, %scale) {layer = "blocks.0"} : tensor<8*Bxf32>
    %loss = plan.call @head(%y, %h) {layer = "head"} : tensor<f32>
    return %loss
  }
}
