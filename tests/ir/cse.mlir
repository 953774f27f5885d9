// RUN: uniap-opt %s -p cse | filecheck %s
// RUN: uniap-opt %s -p cse --stats 2>&1 | filecheck %s --check-prefix=STATS
// STATS: cse: {{.*}}; 3 ops merged

module @m {
  // CHECK-LABEL: func @merge
  func @merge(%x: tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>) {
    // CHECK-NEXT: %a = aten.exp(%x) : tensor<4xf32> loc("a.py":1)
    // CHECK-NEXT: %c = aten.sin(%a)
    // CHECK-NEXT: return %c, %c
    %a = aten.exp(%x) : tensor<4xf32> loc("a.py":1)
    %b = aten.exp(%x) : tensor<4xf32> loc("a.py":2)
    %c = aten.sin(%a) : tensor<4xf32>
    %d = aten.sin(%b) : tensor<4xf32>
    return %c, %d
  }

  // CHECK-LABEL: func @keep
  func @keep(%x: tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf64>) {
    // Attributes differ in type only.
    // CHECK: aten.add.Scalar(%x) {other = 1}
    %a = aten.add.Scalar(%x) {other = 1} : tensor<4xf32>
    // CHECK: aten.add.Scalar(%x) {other = 1.0}
    %b = aten.add.Scalar(%x) {other = 1.0} : tensor<4xf32>
    // Random numbers are drawn anew, and the other ranks take part in a collective.
    // CHECK-COUNT-2: aten.bernoulli
    %r = aten.bernoulli(%x) : tensor<4xf32>
    %s = aten.bernoulli(%x) : tensor<4xf32>
    // CHECK-COUNT-2: comm.all_reduce
    %t = comm.all_reduce(%r) {axes = ["a"], op = "sum"} : tensor<4xf32>
    %u = comm.all_reduce(%r) {axes = ["a"], op = "sum"} : tensor<4xf32>
    // The result types differ.
    // CHECK-COUNT-2: aten._to_copy
    %v = aten._to_copy(%s) : tensor<4xf32>
    %w = aten._to_copy(%s) : tensor<4xf64>
    return %a, %b, %v, %w
  }

  func @pure(%x: tensor<4xf32>) -> (tensor<4xf32>) {
    %a = aten.exp(%x) : tensor<4xf32>
    return %a
  }

  func @random(%x: tensor<4xf32>) -> (tensor<4xf32>) {
    %a = plan.call @pure(%x) : tensor<4xf32>
    %b = aten.bernoulli(%a) : tensor<4xf32>
    return %b
  }

  // CHECK-LABEL: func @calls
  func @calls(%x: tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>) {
    // CHECK-COUNT-1: plan.call @pure
    // CHECK-COUNT-2: plan.call @random
    // CHECK-NEXT: return %a, %a, %c, %d
    %a = plan.call @pure(%x) : tensor<4xf32>
    %b = plan.call @pure(%x) : tensor<4xf32>
    %c = plan.call @random(%x) : tensor<4xf32>
    %d = plan.call @random(%x) : tensor<4xf32>
    return %a, %b, %c, %d
  }
}
