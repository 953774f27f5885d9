// RUN: uniap-opt %s -p "find-tensor-parallelism{sizes=2,2 batch=4}" | filecheck %s
// RUN: uniap-opt %s -p "find-tensor-parallelism{sizes=2 boundary=sequence batch=1}" | filecheck %s --check-prefix=SEQ

module @m attributes {level = annotated} {
  func @step(%x: tensor<Bx2048x4096xbf16> {role = "input"}, %up: tensor<16384x4096xbf16> {role = "param"},
      %down: tensor<4096x16384xbf16> {role = "param"}) -> (tensor<f32>) attributes {results = ["loss"]} {
    %y, %h = plan.call @mlp.forward(%x, %up, %down) {layer = "mlp", phase = "forward"} : tensor<Bx2048x4096xbf16>, tensor<Bx2048x16384xbf16>
    %l = aten.sum(%y) : tensor<f32>
    return %l
  }

  func @mlp.forward(
      %x: tensor<Bx2048x4096xbf16> {role = "activation"},
      %up: tensor<16384x4096xbf16> {role = "param", grad = true},
      %down: tensor<4096x16384xbf16> {role = "param", grad = true}
  ) -> (tensor<Bx2048x4096xbf16>, tensor<Bx2048x16384xbf16>) attributes {kind = "forward", results = ["value", "saved"]} {
    %p = nn.contract(%x, %up) {equation = "b s k, n k -> b s n", rule = #rule<b s k, n k -> b s n | sum k | linear 0 | linear 1 | size b=B s=2048 k=4096 n=16384>} : tensor<Bx2048x16384xbf16>
    %h = aten.relu(%p) {rule = #rule<b s n -> b s n | size b=B s=2048 n=16384>} : tensor<Bx2048x16384xbf16>
    %y = nn.contract(%h, %down) {equation = "b s n, k n -> b s k", rule = #rule<b s n, k n -> b s k | sum n | linear 0 | linear 1 | size b=B s=2048 n=16384 k=4096>} : tensor<Bx2048x4096xbf16>
    return %y, %h
  }

  func @mlp.backward(
      %x: tensor<Bx2048x4096xbf16> {role = "activation"},
      %up: tensor<16384x4096xbf16> {role = "param", grad = true},
      %down: tensor<4096x16384xbf16> {role = "param", grad = true},
      %h: tensor<Bx2048x16384xbf16> {role = "saved", of = "h"},
      %d.y: tensor<Bx2048x4096xbf16> {role = "tangent", of = "y"}
  ) -> (tensor<Bx2048x4096xbf16>, tensor<16384x4096xbf16>, tensor<4096x16384xbf16>) attributes {kind = "backward", of = @mlp.forward, results = ["grad:x", "grad:up", "grad:down"]} {
    %d.down = nn.contract(%d.y, %h) {equation = "b s k, b s n -> k n", rule = #rule<b s k, b s n -> k n | sum b s | linear 0 | linear 1 | size b=B s=2048 k=4096 n=16384>} : tensor<4096x16384xbf16>
    %d.h = nn.contract(%d.y, %down) {equation = "b s k, k n -> b s n", rule = #rule<b s k, k n -> b s n | sum k | linear 0 | linear 1 | size b=B s=2048 k=4096 n=16384>} : tensor<Bx2048x16384xbf16>
    %d.p = aten.threshold_backward(%d.h, %h) {threshold = 0.0, rule = #rule<b s n, b s n -> b s n | linear 0 | size b=B s=2048 n=16384>} : tensor<Bx2048x16384xbf16>
    %d.up = nn.contract(%d.p, %x) {equation = "b s n, b s k -> n k", rule = #rule<b s n, b s k -> n k | sum b s | linear 0 | linear 1 | size b=B s=2048 n=16384 k=4096>} : tensor<16384x4096xbf16>
    %d.x = nn.contract(%d.p, %up) {equation = "b s n, n k -> b s k", rule = #rule<b s n, n k -> b s k | sum n | linear 0 | linear 1 | size b=B s=2048 n=16384 k=4096>} : tensor<Bx2048x4096xbf16>
    return %d.x, %d.up, %d.down
  }
}

// Column, then row: one all-reduce forward and one backward, the hidden values and both matrices split.
// CHECK-LABEL: func @mlp.tp4.replicated.forward
// CHECK: %up: tensor<16384x4096xbf16> @[t0*t1, _]
// CHECK-NEXT: %down: tensor<4096x16384xbf16> @[_, t0*t1]
// CHECK: %p = nn.contract(%x, %up) {{.*}}split = #split<t0 = n, t1 = n>{{.*}} : tensor<Bx2048x16384xbf16> @[_, _, t0*t1]
// CHECK: %y = nn.contract(%h, %down) {{.*}} : tensor<Bx2048x4096xbf16> @[_, _, _; sum t0, sum t1]
// CHECK-NEXT: %y.reduced = comm.all_reduce(%y) {axes = ["t0", "t1"], op = "sum"} : tensor<Bx2048x4096xbf16> @[_, _, _]
// CHECK-NEXT: return %y.reduced, %h
// CHECK-LABEL: func @mlp.tp4.replicated.backward
// CHECK: %d.y: tensor<Bx2048x4096xbf16> @[_, _, _] {role = "tangent", of = "y.reduced"}
// CHECK: %d.x = nn.contract
// CHECK-NEXT: %d.x.reduced = comm.all_reduce(%d.x)
// CHECK-NEXT: return %d.x.reduced, %d.up, %d.down

// A gather and a scatter in each direction; the gathered input is saved for the gradient of %up.
// SEQ-LABEL: func @mlp.tp2.sequence.forward
// SEQ: comm.all_gather(%x) {axes = ["t0"], dim = 1}
// SEQ: comm.reduce_scatter(%y) {axes = ["t0"], dim = 1} : tensor<Bx2048x4096xbf16> @[_, t0, _]
// SEQ-NEXT: return %y.scattered, {{.*}}%x.gathered
