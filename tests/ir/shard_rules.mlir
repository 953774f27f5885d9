// RUN: uniap-opt %s -p shard-rules | filecheck %s
// RUN: uniap-opt %s -p shard-rules --stats 2>&1 | filecheck %s --check-prefix=STATS
// STATS: without a rule, kept whole: aten.mystery

module @m attributes {level = differentiated} {
  func @step(%x: tensor<Bx16x12xf32> {role = "input"}, %w: tensor<32x12xf32> {role = "param"}) -> (tensor<f32>)
      attributes {results = ["loss"]} {
    %v, %u = plan.call @heads.forward(%x, %w) {layer = "heads", phase = "forward"} : tensor<Bx16x4x8xf32>, tensor<Bx16x12xf32>
    %l = aten.sum(%v) : tensor<f32>
    return %l
  }

  // The view cuts the 32 features into 4 heads of 8; the weight that makes them, and its gradient, are cut alike.
  // CHECK-LABEL: func @heads.forward
  func @heads.forward(
      %x: tensor<Bx16x12xf32> {role = "activation"},
      %w: tensor<32x12xf32> {role = "param", grad = true}
  ) -> (tensor<Bx16x4x8xf32>, tensor<Bx16x12xf32>) attributes {kind = "forward", results = ["value", "saved"]} {
    // CHECK: #rule<b s k, (n0 n1) k -> b s (n0 n1) | sum k | linear 0 | linear 1 | size b=B s=16 k=12 n0=4 n1=8>
    %h = nn.contract(%x, %w) {equation = "b s k, n k -> b s n"} : tensor<Bx16x32xf32>
    // CHECK-NEXT: #rule<d0 d1 (d3 d2) -> d0 d1 d3 d2 | linear 0 | size d0=B d1=16 d3=4 d2=8>
    %v = aten.view(%h) {size = [B, 16, 4, 8]} : tensor<Bx16x4x8xf32>
    // CHECK-NEXT: #rule<x0_0 x0_1 x0_2 -> y0_0 y0_1 y0_2 | keep x0_0 x0_1 x0_2 y0_0 y0_1 y0_2 | size
    %u = aten.mystery(%x) : tensor<Bx16x12xf32>
    return %v, %u
  }

  // CHECK-LABEL: func @heads.backward
  func @heads.backward(
      %x: tensor<Bx16x12xf32> {role = "activation"},
      %d.v: tensor<Bx16x4x8xf32> {role = "tangent", of = "v"}
  ) -> (tensor<32x12xf32>) attributes {kind = "backward", of = @heads.forward, results = ["grad:w"]} {
    %d.h = aten.view(%d.v) {size = [B, 16, 32]} : tensor<Bx16x32xf32>
    // CHECK: #rule<b s (n0 n1), b s k -> (n0 n1) k | sum b s | linear 0 | linear 1 | size b=B s=16 n0=4 n1=8 k=12>
    %d.w = nn.contract(%d.h, %x) {equation = "b s n, b s k -> n k"} : tensor<32x12xf32>
    return %d.w
  }
}
