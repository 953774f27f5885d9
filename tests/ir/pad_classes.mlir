// RUN: uniap-opt %s -p "pad-classes{least=5}" | filecheck %s
// Seven classes become 64; the weight is the embedding's, too. Their rows are zeros and their logits -inf.
module @m attributes {level = captured} {
  func @main(%tokens: tensor<Bx4xi64> {role = "input", path = "tokens"},
             %targets: tensor<Bx4xi64> {role = "input", path = "targets"},
             %w: tensor<7x8xf32> {role = "param", path = "w", grad = true},
             %b: tensor<7xf32> {role = "param", path = "b", grad = true}) -> (tensor<f32>) attributes {results = ["loss"]} {
    %h = nn.embedding(%w, %tokens) : tensor<Bx4x8xf32>
    %logits = nn.contract(%h, %w) {equation = "b s k, n k -> b s n"} : tensor<Bx4x7xf32>
    %biased = aten.add.Tensor(%logits, %b) : tensor<Bx4x7xf32>
    %flat = aten.view(%biased) {size = [4*B, 7]} : tensor<4*Bx7xf32>
    %goal = aten.view(%targets) {size = [4*B]} : tensor<4*Bxi64>
    %each, %lse = nn.cross_entropy(%flat, %goal) {ignore_index = -100} : tensor<4*Bxf32>, tensor<4*Bxf32>
    %loss = aten.sum.dim_IntList(%each) {dim = [0]} : tensor<f32>
    return %loss
  }
}
// CHECK: %w: tensor<64x8xf32> {{.*}}unpadded = [7, 8]
// CHECK: %b: tensor<64xf32> {{.*}}unpadded = [7]
// CHECK: %h = nn.embedding(%w, %tokens) : tensor<Bx4x8xf32>
// CHECK: %logits = nn.contract(%h, %w) {equation = "b s k, n k -> b s n"} : tensor<Bx4x64xf32>
// CHECK: %index = aten.arange() {end = 64, dtype = i64}
// CHECK: %beyond = aten.ge.Scalar(%index) {other = 7}
// CHECK: %padding = aten.masked_fill.Scalar(%zeros, %beyond) {value = -inf} : tensor<64xf32>
// CHECK: %logits_padded = aten.add.Tensor(%logits, %padding) : tensor<Bx4x64xf32>
// CHECK: %biased = aten.add.Tensor(%logits_padded, %b) : tensor<Bx4x64xf32>
// CHECK: %flat = aten.view(%biased) {size = [4*B, 64]} : tensor<4*Bx64xf32>
// CHECK: nn.cross_entropy(%flat, %goal)
