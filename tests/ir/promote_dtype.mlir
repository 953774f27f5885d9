// RUN: uniap-opt %s -p "promote-dtype{dtype=f64}" | filecheck %s
// RUN: uniap-opt %s -p "promote-dtype{dtype=bf16}" | filecheck %s --check-prefix=LOW

// CHECK: module @m attributes {dtype = f64}
module @m attributes {dtype = f32} {
  // CHECK: plan.input @x {shape = [4], dtype = f64}
  plan.input @x {shape = [4], dtype = f32}
  // CHECK: plan.input @i {shape = [4], dtype = i64}
  plan.input @i {shape = [4], dtype = i64}

  // CHECK: func @casts(%x: tensor<4xf64>, %i: tensor<4xi64>) -> (tensor<4xf64>)
  func @casts(%x: tensor<4xbf16>, %i: tensor<4xi64>) -> (tensor<4xf32>) {
    // CHECK-NEXT: %y = aten._to_copy(%x) {dtype = f64} : tensor<4xf64>
    %y = aten._to_copy(%x) {dtype = f32} : tensor<4xf32>
    // CHECK-NEXT: %j = aten._to_copy(%i) {dtype = i32} : tensor<4xi32>
    %j = aten._to_copy(%i) {dtype = i32} : tensor<4xi32>
    // CHECK-NEXT: %z = aten.mul.Tensor(%y, %j) : tensor<4xf64>
    %z = aten.mul.Tensor(%y, %j) : tensor<4xf32>
    return %z
  }

  // CHECK: func @attention
  // LOW: func @attention
  func @attention(%q: tensor<1x8x4xf32>) -> (tensor<1x8x4xf32>) {
    // CHECK-NEXT: %out, %lse = nn.attention({{.*}} : tensor<1x8x4xf64>, tensor<1x8xf64>
    // LOW-NEXT: %out, %lse = nn.attention({{.*}} : tensor<1x8x4xbf16>, tensor<1x8xf32>
    %out, %lse = nn.attention(%q, %q, %q, none) {causal = true, scale = 0.5} : tensor<1x8x4xf32>, tensor<1x8xf32>
    return %out
  }
}
