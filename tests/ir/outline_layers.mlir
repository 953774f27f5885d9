// RUN: uniap-opt %s -p outline-layers | filecheck %s

module @Net attributes {level = captured, dtype = f32} {
  // The count of targets depends on inputs only.
  // CHECK:      func @prelude(
  // CHECK-NEXT:     %targets: tensor<Bxi64> {role = "input", path = "targets"}
  // CHECK:        %[[COUNT:.*]] = aten._to_copy
  // CHECK:        return %[[COUNT]]

  // CHECK:      func @embed(
  // CHECK:          {role = "input", path = "batch.0"}

  // Both blocks are one func; names inside do not depend on which block it was.
  // CHECK:      func @block(
  // CHECK-NEXT:     %x: tensor<Bx8xf32> {role = "activation", grad = true},
  // CHECK-NEXT:     %weight: tensor<8x8xf32> {role = "param", grad = true}
  // CHECK-NEXT: ) -> (tensor<Bx8xf32>) attributes {kind = "layer"
  // CHECK-NEXT:   %contract = nn.contract(%x, %weight)
  // CHECK-NEXT:   %relu = aten.relu(%contract)
  // CHECK-NEXT:   %add = aten.add.Tensor(%x, %relu)
  // CHECK-NOT:  func @block

  // The last layer makes the loss.
  // CHECK:      func @head(
  // CHECK:      ) -> (tensor<f32>) attributes {kind = "layer"

  // CHECK:      func @main(
  // CHECK:        %[[N:.*]] = plan.call @prelude(%targets) {layer = "prelude"} : tensor<f32>
  // CHECK-NEXT:   %[[E:.*]] = plan.call @embed(%batch.0, %embed.weight) {layer = "embed"}
  // CHECK-NEXT:   %[[A:.*]] = plan.call @block(%[[E]], %blocks.0.weight) {layer = "blocks.0"}
  // CHECK-NEXT:   %[[B:.*]] = plan.call @block(%[[A]], %blocks.1.weight) {layer = "blocks.1"}
  // CHECK-NEXT:   %[[L:.*]] = plan.call @head(%[[B]], %targets, %[[N]], %head.weight) {layer = "head"}
  // CHECK-NEXT:   return %[[L]]
  func @main(
      %batch.0: tensor<Bx8xf32> {role = "input", path = "batch.0"},
      %targets: tensor<Bxi64> {role = "input", path = "targets"},
      %embed.weight: tensor<8x8xf32> {role = "param", path = "embed.weight", grad = true},
      %blocks.0.weight: tensor<8x8xf32> {role = "param", path = "blocks.0.weight", grad = true},
      %blocks.1.weight: tensor<8x8xf32> {role = "param", path = "blocks.1.weight", grad = true},
      %head.weight: tensor<3x8xf32> {role = "param", path = "head.weight", grad = true}
  ) -> (tensor<f32>) attributes {results = ["loss"], classes = ["blocks.0=Block", "blocks.1=Block"]} {
    %h = nn.contract(%batch.0, %embed.weight) {equation = "b k, n k -> b n"} : tensor<Bx8xf32> loc("net.py":9 in "embed")
    %u0 = nn.contract(%h, %blocks.0.weight) {equation = "b k, n k -> b n"} : tensor<Bx8xf32> loc("net.py":9 in "blocks.0")
    %r0 = aten.relu(%u0) : tensor<Bx8xf32> loc("net.py":9 in "blocks.0")
    %a0 = aten.add.Tensor(%h, %r0) : tensor<Bx8xf32> loc("net.py":9 in "blocks.0")
    %u1 = nn.contract(%a0, %blocks.1.weight) {equation = "b k, n k -> b n"} : tensor<Bx8xf32> loc("net.py":9 in "blocks.1")
    %r1 = aten.relu(%u1) : tensor<Bx8xf32> loc("net.py":9 in "blocks.1")
    %a1 = aten.add.Tensor(%a0, %r1) : tensor<Bx8xf32> loc("net.py":9 in "blocks.1")
    %logits = nn.contract(%a1, %head.weight) {equation = "b k, n k -> b n"} : tensor<Bx3xf32> loc("net.py":15 in "head")
    %each, %lse = nn.cross_entropy(%logits, %targets) {ignore_index = -100} : tensor<Bxf32>, tensor<Bxf32>
    %ne = aten.ne.Scalar(%targets) {other = -100} : tensor<Bxi1>
    %count = aten.sum(%ne) : tensor<i64>
    %n = aten._to_copy(%count) {dtype = f32} : tensor<f32>
    %total = aten.sum(%each) : tensor<f32>
    %loss = aten.div.Tensor(%total, %n) : tensor<f32>
    return %loss
  }
}
