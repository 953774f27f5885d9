// RUN: uniap-opt %s -p bucket-collectives | filecheck %s

module @m attributes {level = local} {
  // Alike are: the kind, the group, the reduction, the dtype.
  // CHECK-LABEL: func @stage_0.reduce_gradients(
  // CHECK:         %a1, %b1 = comm.all_reduce_many([%a, %b]) {group = "x", op = "sum"} : tensor<4xf32>, tensor<8xf32>
  // CHECK-NEXT:    %c1 = comm.all_reduce(%c) {group = "y", op = "sum"}
  // CHECK-NEXT:    %d1 = comm.all_reduce(%d) {group = "x", op = "sum"} : tensor<4xbf16>
  // CHECK-NEXT:    %e1, %f1 = comm.reduce_scatter_many([%e, %f]) {group = "x", dims = [0, 1]}
  // What reads a result comes after it, and is taken together with its like.
  // CHECK-NEXT:    %a2, %e2 = comm.all_reduce_many([%a1, %e1]) {group = "y", op = "sum"}
  // CHECK-NEXT:    %g = aten.add.Tensor(%b1, %b1)
  // CHECK-NEXT:    return %a2, %g, %c1, %d1, %e2, %f1
  func @stage_0.reduce_gradients(
      %a: tensor<4xf32>, %b: tensor<8xf32>, %c: tensor<4xf32>, %d: tensor<4xbf16>, %e: tensor<4x4xf32>, %f: tensor<4x4xf32>
  ) -> (tensor<4xf32>, tensor<8xf32>, tensor<4xf32>, tensor<4xbf16>, tensor<2x4xf32>, tensor<4x2xf32>)
      attributes {kind = "segment", stage = 0, phase = "reduce_gradients",
                  args = ["grad:a", "grad:b", "grad:c", "grad:d", "grad:e", "grad:f"],
                  results = ["grad:a", "grad:b", "grad:c", "grad:d", "grad:e", "grad:f"]} {
    %a1 = comm.all_reduce(%a) {group = "x", op = "sum"} : tensor<4xf32>
    %a2 = comm.all_reduce(%a1) {group = "y", op = "sum"} : tensor<4xf32>
    %b1 = comm.all_reduce(%b) {group = "x", op = "sum"} : tensor<8xf32>
    %g = aten.add.Tensor(%b1, %b1) : tensor<8xf32>
    %c1 = comm.all_reduce(%c) {group = "y", op = "sum"} : tensor<4xf32>
    %d1 = comm.all_reduce(%d) {group = "x", op = "sum"} : tensor<4xbf16>
    %e1 = comm.reduce_scatter(%e) {dim = 0, group = "x"} : tensor<2x4xf32>
    %e2 = comm.all_reduce(%e1) {group = "y", op = "sum"} : tensor<2x4xf32>
    %f1 = comm.reduce_scatter(%f) {dim = 1, group = "x"} : tensor<4x2xf32>
    return %a2, %g, %c1, %d1, %e2, %f1
  }

  // In every micro-batch a collective has its place between computations.
  // CHECK-LABEL: func @stage_0.backward(
  // CHECK-NOT:     many
  func @stage_0.backward(%a: tensor<4xf32>, %b: tensor<8xf32>) -> (tensor<4xf32>, tensor<8xf32>)
      attributes {kind = "segment", stage = 0, phase = "backward", args = ["saved:a", "saved:b"], results = ["grad:a", "grad:b"]} {
    %a1 = comm.all_reduce(%a) {group = "x", op = "sum"} : tensor<4xf32>
    %b1 = comm.all_reduce(%b) {group = "x", op = "sum"} : tensor<8xf32>
    return %a1, %b1
  }
}
