// RUN: uniap-opt %s -p canonicalize | filecheck %s
// RUN: uniap-opt %s -p canonicalize,canonicalize | filecheck %s

module @m attributes {level = layered} {
  // Sizes are spelled as the type has them.
  // CHECK-LABEL: func @sizes
  func @sizes(%x: tensor<Bx4x8xf32>) -> (tensor<4*Bx8xf32>) {
    // CHECK: aten.view(%x) {size = [4*B, 8]}
    %v = aten.view(%x) {size = [-1, 8]} : tensor<4*Bx8xf32>
    return %v
  }

  // CHECK-LABEL: func @identities
  func @identities(%x: tensor<Bx8xf32>) -> (tensor<Bx8xf32>) {
    // CHECK-NEXT: return %x
    %a = aten.view(%x) {size = [-1, 8]} : tensor<Bx8xf32>
    %b = aten.expand(%a) {size = [-1, 8]} : tensor<Bx8xf32>
    %c = aten.slice.Tensor(%b) {dim = 1, end = 9223372036854775807} : tensor<Bx8xf32>
    %d = aten.pow.Tensor_Scalar(%c) {exponent = 1.0} : tensor<Bx8xf32>
    %e = aten._to_copy(%d) {dtype = f32} : tensor<Bx8xf32>
    %f = aten.clone(%e) : tensor<Bx8xf32>
    %g = aten.permute(%f) {dims = [0, -1]} : tensor<Bx8xf32>
    return %g
  }

  // A copy into another order of memory, a shorter slice, a transpose of a square: these do something.
  // CHECK-LABEL: func @no_identities
  func @no_identities(%x: tensor<8x8xf32>) -> (tensor<8x8xf32>, tensor<8x8xf32>, tensor<4x8xf32>) {
    // CHECK: aten.transpose.int
    %a = aten.transpose.int(%x) {dim0 = 0, dim1 = 1} : tensor<8x8xf32>
    // CHECK-NEXT: aten.clone
    %b = aten.clone(%a) {memory_format = contiguous_format} : tensor<8x8xf32>
    // CHECK-NEXT: aten.slice.Tensor(%x)
    %c = aten.slice.Tensor(%x) {end = 4} : tensor<4x8xf32>
    return %a, %b, %c
  }

  // CHECK-LABEL: func @merged
  func @merged(%x: tensor<Bx4x8xf32>) -> (tensor<8xf32>, tensor<8xBx4xf32>, tensor<1x1x8xf32>) {
    // CHECK-NEXT: %bias = aten.sum.dim_IntList(%x) {dim = [0, 1]} : tensor<8xf32>
    %s = aten.sum.dim_IntList(%x) {dim = [0, 1], keepdim = true} : tensor<1x1x8xf32>
    %bias = aten.view(%s) {size = [8]} : tensor<8xf32>
    // CHECK-NEXT: %b = aten.view(%x) {size = [8, B, 4]}
    %a = aten.view(%x) {size = [4, B, 8]} : tensor<4xBx8xf32>
    %b = aten.view(%a) {size = [8, B, 4]} : tensor<8xBx4xf32>
    // A sum that is also read with its kept dims stays.
    // CHECK-NEXT: %t = aten.sum.dim_IntList(%x) {dim = [0, 1], keepdim = true}
    %t = aten.sum.dim_IntList(%x) {dim = [0, 1], keepdim = true} : tensor<1x1x8xf32>
    // CHECK-NEXT: return %bias, %b, %t
    return %bias, %b, %t
  }

  // CHECK-LABEL: func @detach
  func @detach(
      %x: tensor<Bx8xf32> {role = "activation", grad = true},
      %y: tensor<Bx8xf32> {role = "activation", grad = false}) -> (tensor<Bx8xf32>, tensor<Bx8xf32>) {
    // CHECK: %a = aten.detach(%x)
    %a = aten.detach(%x) : tensor<Bx8xf32>
    // CHECK-NEXT: return %a, %y
    %b = aten.detach(%y) : tensor<Bx8xf32>
    return %a, %b
  }

  // What a forward func saves is named by its backward, so forward funcs are left alone.
  // CHECK-LABEL: func @f.forward
  func @f.forward(%x: tensor<Bx8xf32>) -> (tensor<Bx8xf32>) attributes {kind = "forward", results = ["value"]} {
    // CHECK: aten.pow.Tensor_Scalar
    %d = aten.pow.Tensor_Scalar(%x) {exponent = 1.0} : tensor<Bx8xf32>
    return %d
  }

  func @main(%x: tensor<Bx8xf32> {role = "input", path = "batch"}) -> (tensor<f32>) attributes {results = ["loss"]} {
    %loss = plan.call @loss(%x) {layer = "loss"} : tensor<f32>
    return %loss
  }

  func @loss(%x: tensor<Bx8xf32> {role = "input", path = "batch"}) -> (tensor<f32>)
      attributes {kind = "layer", results = ["value"]} {
    %s = aten.sum(%x) : tensor<f32>
    return %s
  }
}
