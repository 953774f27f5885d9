// RUN: uniap-opt %s -p decompose-losses | filecheck %s

module @m attributes {level = differentiated} {
  // CHECK-LABEL: func @head.forward
  func @head.forward(%logits: tensor<Bx8x64xf32>, %target: tensor<Bx8xi64>) -> (tensor<Bx8xf32>, tensor<Bx8xf32>)
      attributes {kind = "forward", results = ["value", "saved"]} {
    // CHECK: %max = aten.amax(%logits) {dim = [-1]} : tensor<Bx8xf32> loc("lm.py":3 in "head")
    // CHECK-NEXT: %total = nn.sum_exp(%logits, %max) : tensor<Bx8xf32>
    // CHECK-NEXT: %log = aten.log(%total)
    // CHECK-NEXT: %lse = aten.add.Tensor(%log, %max)
    // CHECK-NEXT: %picked = nn.pick(%logits, %target) {ignore_index = -100}
    // CHECK-NEXT: %nll = aten.sub.Tensor(%lse, %picked)
    // CHECK-NEXT: %ignored = aten.eq.Scalar(%target) {other = -100} : tensor<Bx8xi1>
    // CHECK-NEXT: %loss = aten.masked_fill.Scalar(%nll, %ignored) {value = 0.0}
    %loss, %lse = nn.cross_entropy(%logits, %target) {ignore_index = -100} : tensor<Bx8xf32>, tensor<Bx8xf32> loc("lm.py":3 in "head")
    // CHECK-NEXT: return %loss, %lse
    return %loss, %lse
  }

  // The derivative stays one op: it reads the logsumexp.
  // CHECK-LABEL: func @head.backward
  func @head.backward(
      %logits: tensor<Bx8x64xf32>, %target: tensor<Bx8xi64>, %lse: tensor<Bx8xf32> {role = "saved", of = "lse"},
      %d.loss: tensor<Bx8xf32> {role = "tangent", of = "loss"}) -> (tensor<Bx8x64xf32>)
      attributes {kind = "backward", of = @head.forward, results = ["grad:logits"]} {
    // CHECK: nn.cross_entropy_backward
    %d.logits = nn.cross_entropy_backward(%d.loss, %logits, %target, %lse) {ignore_index = -100} : tensor<Bx8x64xf32>
    return %d.logits
  }

  func @step(%logits: tensor<Bx8x64xf32> {role = "input", path = "batch"}, %target: tensor<Bx8xi64> {role = "input", path = "targets"}) -> (tensor<f32>)
      attributes {kind = "step", results = ["loss"]} {
    %l, %s = plan.call @head.forward(%logits, %target) {layer = "head", phase = "forward"} : tensor<Bx8xf32>, tensor<Bx8xf32>
    %loss = aten.sum(%l) : tensor<f32>
    return %loss
  }
}
