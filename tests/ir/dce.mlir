// RUN: uniap-opt %s -p dce | filecheck %s

module @m {
  // CHECK-LABEL: func @chain
  func @chain(%x: tensor<4xf32>) -> (tensor<4xf32>) {
    // Unread ops go, and with them what only they read.
    // CHECK-NOT: aten.sin
    // CHECK-NOT: aten.cos
    %a = aten.sin(%x) : tensor<4xf32>
    %b = aten.cos(%a) : tensor<4xf32>
    // One read result keeps the op.
    // CHECK: %values, %indices = aten.max.dim(%x)
    %values, %indices = aten.max.dim(%x) {dim = 0} : tensor<4xf32>, tensor<4xi64>
    // CHECK-NEXT: return %values
    return %values
  }

  // CHECK-LABEL: func @acts
  func @acts(%x: tensor<4xf32>) -> () {
    // The other ranks take part in a collective: it stays, and so does what it reads.
    // CHECK-NEXT: %[[A:.*]] = aten.sin(%x)
    %a = aten.sin(%x) : tensor<4xf32>
    // CHECK-NEXT: comm.all_reduce(%[[A]])
    %b = comm.all_reduce(%a) {axes = ["a"], op = "sum"} : tensor<4xf32>
    // CHECK-NEXT: comm.send(%x)
    comm.send(%x) {to_stage = 1}
    // CHECK-NEXT: return
    return
  }
}
