// RUN: uniap-opt %s -p "overlap-gradients{bucket_bytes=64}" | filecheck %s

module @m attributes {level = local} {
  plan.plan @plan {stages = 1, micro_batches = 2, schedule = "1f1b"}

  func @stage_0.backward(%s: tensor<4x4xf32>, %g: tensor<4x4xf32>) -> (tensor<4x4xf32>, tensor<4x4xf32>, tensor<4xf32>, tensor<4xf32>)
      attributes {kind = "segment", stage = 0, phase = "backward", args = ["saved:s", "seed:loss"],
                  results = ["grad:a", "grad:b@copy0", "grad:c", "grad:tied@copy0"]} {
    %a = aten.mul.Tensor(%s, %g) : tensor<4x4xf32>
    %b = aten.add.Tensor(%a, %g) : tensor<4x4xf32>
    %c = aten.sum.dim_IntList(%b) {dim = [0]} : tensor<4xf32>
    %d = aten.neg(%c) : tensor<4xf32>
    return %a, %b, %c, %d
  }

  // Each gradient is complete once the sum of the earlier micro-batches is added; %a alone fills a bucket, %c is the rest.
  // CHECK-LABEL: func @stage_0.backward_last(
  // CHECK:         args = ["saved:s", "seed:loss", "grad:a", "grad:b@copy0", "grad:c"]
  // CHECK-NEXT:    results = ["grad:a", "grad:b", "grad:c", "grad:tied@copy0"]
  // CHECK:         %a = aten.mul.Tensor(%s, %g)
  // CHECK-NEXT:    %a_1 = aten.add.Tensor(%a.sum, %a)
  // CHECK-NEXT:    %a_1.handle = comm.all_reduce_start(%a_1) {group = "x", op = "sum"}
  // CHECK-NEXT:    %b = aten.add.Tensor(%a, %g)
  // CHECK-NEXT:    %b_1 = aten.add.Tensor(%b.sum, %b)
  // CHECK-NEXT:    %b_1.handle = comm.reduce_scatter_start(%b_1) {dim = 0, group = "x"}
  // CHECK-NEXT:    %c = aten.sum.dim_IntList(%b) {dim = [0]}
  // CHECK-NEXT:    %c_1 = aten.add.Tensor(%c.sum, %c)
  // CHECK-NEXT:    %d = aten.neg(%c)
  // CHECK-NEXT:    %c_1.handle = comm.all_reduce_start(%c_1) {group = "x", op = "sum"}
  // CHECK-NEXT:    %a_1_1 = comm.wait(%a_1.handle)
  // CHECK-NEXT:    %b_1_1 = comm.wait(%b_1.handle) : tensor<2x4xf32>
  // CHECK-NEXT:    %c_1_1 = comm.wait(%c_1.handle)
  // CHECK-NEXT:    return %a_1_1, %b_1_1, %c_1_1, %d

  // The gradient of a copy is not final after one collective, so it stays.
  // CHECK-LABEL: func @stage_0.reduce_gradients(
  // CHECK:         args = ["grad:tied@copy0"], results = ["grad:tied"]
  // CHECK-NEXT:    %d1 = comm.all_reduce(%d)
  // CHECK-NEXT:    %d2 = aten.add.Tensor(%d1, %d1)
  // CHECK-NEXT:    return %d2
  func @stage_0.reduce_gradients(%a: tensor<4x4xf32>, %b: tensor<4x4xf32>, %c: tensor<4xf32>, %d: tensor<4xf32>)
      -> (tensor<4x4xf32>, tensor<2x4xf32>, tensor<4xf32>, tensor<4xf32>)
      attributes {kind = "segment", stage = 0, phase = "reduce_gradients",
                  args = ["grad:a", "grad:b@copy0", "grad:c", "grad:tied@copy0"],
                  results = ["grad:a", "grad:b", "grad:c", "grad:tied"]} {
    %a1 = comm.all_reduce(%a) {group = "x", op = "sum"} : tensor<4x4xf32>
    %b1 = comm.reduce_scatter(%b) {dim = 0, group = "x"} : tensor<2x4xf32>
    %c1 = comm.all_reduce(%c) {group = "x", op = "sum"} : tensor<4xf32>
    %d1 = comm.all_reduce(%d) {group = "x", op = "sum"} : tensor<4xf32>
    %d2 = aten.add.Tensor(%d1, %d1) : tensor<4xf32>
    return %a1, %b1, %c1, %d2
  }
}
