// RUN: uniap-opt %s | filecheck %s
// A residual block and its derivative on tensor axes t0 and t1, as the search shards it: the verifier accepts it, and
// test_layout_mutants.py checks that it accepts nothing near it.

// CHECK: comm.reduce_scatter(%contract_1)
// CHECK: comm.all_gather(%add_1)
// CHECK: comm.slice(%d.add_2)
// CHECK: comm.all_reduce(%contract_4)
module @sharded {
  func @block.tp4.replicated.forward(
      %x: tensor<Bx128xf32> @[_, _] {role = "activation", grad = true},
      %norm.weight: tensor<128xf32> @[_] {role = "param", grad = true},
      %norm.bias: tensor<128xf32> @[_] {role = "param", grad = true},
      %up.weight: tensor<512x128xf32> @[t0*t1, _] {role = "param", grad = true},
      %up.bias: tensor<512xf32> @[t0*t1] {role = "param", grad = true},
      %down.weight: tensor<128x512xf32> @[_, t0*t1] {role = "param", grad = true},
      %down.bias: tensor<128xf32> @[t0*t1] {role = "param", grad = true}
  ) -> (tensor<Bx128xf32> @[_, _], tensor<Bx128xf32> @[_, _], tensor<Bx1xf32> @[_, _], tensor<Bx1xf32> @[_, _], tensor<Bx512xf32> @[_, t0*t1], tensor<Bx512xf32> @[_, t0*t1]) attributes {kind = "forward", results = ["value", "saved", "saved", "saved", "saved", "saved"], tensor_axes = #axes<t0 = 2, t1 = 2>, boundary = "replicated"} {
    %native_layer_norm, %native_layer_norm_1, %native_layer_norm_2 = aten.native_layer_norm(%x, %norm.weight, %norm.bias) {normalized_shape = [128], eps = 1e-05, rule = #rule<b0 n0, n0, n0 -> b0 n0, b0 1, b0 1 | keep n0 | size b0=B n0=128>, split = #split<>} : tensor<Bx128xf32> @[_, _], tensor<Bx1xf32> @[_, _], tensor<Bx1xf32> @[_, _] loc("mlp.py":25 in "blocks.0.norm")
    %contract = nn.contract(%native_layer_norm, %up.weight) {equation = "b k, n k -> b n", rule = #rule<b k, n k -> b n | sum k | linear 0 | linear 1 | size b=B k=128 n=512>, split = #split<t0 = n, t1 = n>} : tensor<Bx512xf32> @[_, t0*t1] loc("mlp.py":25 in "blocks.0.up")
    %add = aten.add.Tensor(%contract, %up.bias) {rule = #rule<d0 d1, d1 -> d0 d1 | linear 0 1 | size d0=B d1=512>, split = #split<t0 = d1, t1 = d1>} : tensor<Bx512xf32> @[_, t0*t1] loc("mlp.py":25 in "blocks.0.up")
    %gelu = aten.gelu(%add) {rule = #rule<d0 d1 -> d0 d1 | size d0=B d1=512>, split = #split<t0 = d1, t1 = d1>} : tensor<Bx512xf32> @[_, t0*t1] loc("mlp.py":25 in "blocks.0")
    %contract_1 = nn.contract(%gelu, %down.weight) {equation = "b k, n k -> b n", rule = #rule<b k, n k -> b n | sum k | linear 0 | linear 1 | size b=B k=512 n=128>, split = #split<t0 = k, t1 = k>} : tensor<Bx128xf32> @[_, _; sum t0, sum t1] loc("mlp.py":25 in "blocks.0.down")
    %contract_1.scattered = comm.reduce_scatter(%contract_1) {axes = ["t0", "t1"], dim = 1} : tensor<Bx128xf32> @[_, t0*t1] loc("mlp.py":25 in "blocks.0.down")
    %add_1 = aten.add.Tensor(%contract_1.scattered, %down.bias) {rule = #rule<d0 d1, d1 -> d0 d1 | linear 0 1 | size d0=B d1=128>, split = #split<t0 = d1, t1 = d1>} : tensor<Bx128xf32> @[_, t0*t1] loc("mlp.py":25 in "blocks.0.down")
    %add_1.gathered = comm.all_gather(%add_1) {axes = ["t0", "t1"], dim = 1} : tensor<Bx128xf32> @[_, _] loc("mlp.py":25 in "blocks.0.down")
    %add_2 = aten.add.Tensor(%x, %add_1.gathered) {rule = #rule<d0 d1, d0 d1 -> d0 d1 | linear 0 1 | size d0=B d1=128>, split = #split<>} : tensor<Bx128xf32> @[_, _] loc("mlp.py":25 in "blocks.0")
    return %add_2, %native_layer_norm, %native_layer_norm_1, %native_layer_norm_2, %add, %gelu
  }

  func @block.tp4.replicated.backward(
      %x: tensor<Bx128xf32> @[_, _] {role = "activation", grad = true},
      %norm.weight: tensor<128xf32> @[_] {role = "param", grad = true},
      %norm.bias: tensor<128xf32> @[_] {role = "param", grad = true},
      %up.weight: tensor<512x128xf32> @[t0*t1, _] {role = "param", grad = true},
      %down.weight: tensor<128x512xf32> @[_, t0*t1] {role = "param", grad = true},
      %native_layer_norm: tensor<Bx128xf32> @[_, _] {role = "saved", of = "native_layer_norm"},
      %native_layer_norm_1: tensor<Bx1xf32> @[_, _] {role = "saved", of = "native_layer_norm_1"},
      %native_layer_norm_2: tensor<Bx1xf32> @[_, _] {role = "saved", of = "native_layer_norm_2"},
      %add: tensor<Bx512xf32> @[_, t0*t1] {role = "saved", of = "add"},
      %gelu: tensor<Bx512xf32> @[_, t0*t1] {role = "saved", of = "gelu"},
      %d.add_2: tensor<Bx128xf32> @[_, _] {role = "tangent", of = "add_2"}
  ) -> (tensor<Bx128xf32> @[_, _], tensor<128xf32> @[_], tensor<128xf32> @[_], tensor<512x128xf32> @[t0*t1, _], tensor<512xf32> @[t0*t1], tensor<128x512xf32> @[_, t0*t1], tensor<128xf32> @[t0*t1]) attributes {kind = "backward", of = @block.tp4.replicated.forward, results = ["grad:x", "grad:norm.weight", "grad:norm.bias", "grad:up.weight", "grad:up.bias", "grad:down.weight", "grad:down.bias"], tensor_axes = #axes<t0 = 2, t1 = 2>, boundary = "replicated"} {
    %d.add_2.sliced = comm.slice(%d.add_2) {axes = ["t0", "t1"], dim = 1} : tensor<Bx128xf32> @[_, t0*t1]
    %sum = aten.sum.dim_IntList(%d.add_2.sliced) {dim = [0], keepdim = true, rule = #rule<d0 d1 -> 1 d1 | sum d0 | linear 0 | size d0=B d1=128>, split = #split<t0 = d1, t1 = d1>} : tensor<1x128xf32> @[_, t0*t1] loc("mlp.py":25 in "blocks.0.down")
    %contract_2 = nn.contract(%d.add_2, %down.weight) {equation = "b n, n k -> b k", rule = #rule<b n, n k -> b k | sum n | linear 0 | linear 1 | size b=B n=128 k=512>, split = #split<t0 = k, t1 = k>} : tensor<Bx512xf32> @[_, t0*t1] loc("mlp.py":25 in "blocks.0.down")
    %d.down.weight = nn.contract(%d.add_2, %gelu) {equation = "b n, b k -> n k", rule = #rule<b n, b k -> n k | sum b | linear 0 | linear 1 | size b=B n=128 k=512>, split = #split<t0 = k, t1 = k>} : tensor<128x512xf32> @[_, t0*t1] loc("mlp.py":25 in "blocks.0.down")
    %gelu_backward = aten.gelu_backward(%contract_2, %add) {rule = #rule<d0 d1, d0 d1 -> d0 d1 | linear 0 | size d0=B d1=512>, split = #split<t0 = d1, t1 = d1>} : tensor<Bx512xf32> @[_, t0*t1] loc("mlp.py":25 in "blocks.0")
    %sum_1 = aten.sum.dim_IntList(%gelu_backward) {dim = [0], keepdim = true, rule = #rule<d0 d1 -> 1 d1 | sum d0 | linear 0 | size d0=B d1=512>, split = #split<t0 = d1, t1 = d1>} : tensor<1x512xf32> @[_, t0*t1] loc("mlp.py":25 in "blocks.0.up")
    %contract_4 = nn.contract(%gelu_backward, %up.weight) {equation = "b n, n k -> b k", rule = #rule<b n, n k -> b k | sum n | linear 0 | linear 1 | size b=B n=512 k=128>, split = #split<t0 = n, t1 = n>} : tensor<Bx128xf32> @[_, _; sum t0, sum t1] loc("mlp.py":25 in "blocks.0.up")
    %d.up.weight = nn.contract(%gelu_backward, %native_layer_norm) {equation = "b n, b k -> n k", rule = #rule<b n, b k -> n k | sum b | linear 0 | linear 1 | size b=B n=512 k=128>, split = #split<t0 = n, t1 = n>} : tensor<512x128xf32> @[t0*t1, _] loc("mlp.py":25 in "blocks.0.up")
    %contract_4.reduced = comm.all_reduce(%contract_4) {axes = ["t0", "t1"], op = "sum"} : tensor<Bx128xf32> @[_, _] loc("mlp.py":25 in "blocks.0.up")
    %native_layer_norm_backward, %d.norm.weight, %d.norm.bias = aten.native_layer_norm_backward(%contract_4.reduced, %x, %native_layer_norm_1, %native_layer_norm_2, %norm.weight, %norm.bias) {normalized_shape = [128], output_mask = [true, true, true], rule = #rule<b0 n0, b0 n0, b0 1, b0 1, n0, n0 -> b0 n0, n0, n0 | sum b0 | keep n0 | linear 0 | size b0=B n0=128>, split = #split<>} : tensor<Bx128xf32> @[_, _], tensor<128xf32> @[_], tensor<128xf32> @[_] loc("mlp.py":25 in "blocks.0.norm")
    %d.x = aten.add.Tensor(%d.add_2, %native_layer_norm_backward) {rule = #rule<d0 d1, d0 d1 -> d0 d1 | linear 0 1 | size d0=B d1=128>, split = #split<>} : tensor<Bx128xf32> @[_, _] loc("mlp.py":25 in "blocks.0.norm")
    %d.up.bias = aten.view(%sum_1) {size = [512], rule = #rule<1 d0 -> d0 | linear 0 | size d0=512>, split = #split<t0 = d0, t1 = d0>} : tensor<512xf32> @[t0*t1] loc("mlp.py":25 in "blocks.0.up")
    %d.down.bias = aten.view(%sum) {size = [128], rule = #rule<1 d0 -> d0 | linear 0 | size d0=128>, split = #split<t0 = d0, t1 = d0>} : tensor<128xf32> @[t0*t1] loc("mlp.py":25 in "blocks.0.down")
    return %d.x, %d.norm.weight, %d.norm.bias, %d.up.weight, %d.up.bias, %d.down.weight, %d.down.bias
  }
}
