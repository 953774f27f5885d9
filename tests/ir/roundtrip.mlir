// RUN: uniap-opt %s | filecheck %s --match-full-lines
// Everything that the text can hold, in its canonical spelling.

// CHECK: // uniap-ir 1
// CHECK-NEXT: module @"tiny llama" attributes {{{}}int = 1, float = -2.5, big = 1e+16, special = [nan, inf, -inf, true, false, none], text = "a\nb\"c // no comment", batch = [B, 2*B-1, 1/(64*B)], word = contiguous_format, "odd key" = #atom"B", symbol = @block, odd = @"a b"{{}}} {
module @"tiny llama" attributes {
    int = 1, float = -2.5, big = 1e16, special = [nan, inf, -inf, true, false, none],
    text = "a\nb\"c // no comment", batch = [B, 2*B-1, 1/(64*B)], word = contiguous_format,
    "odd key" = #atom"B", symbol = @block, odd = @"a b"} {
  // CHECK-NEXT:   plan.constant @mask {digest = "00ff", layout = @[a*b, (_:8 c:512); sum d]}
  plan.constant @mask {digest = "00ff", layout = @[a*b,(_:8 c:512); sum d]}
  // CHECK-NEXT:   plan.optimizer {kind = #adamw<betas = [0.9, 0.95], nested = #empty<>>}
  plan.optimizer {kind = #adamw<betas = [0.9, 0.95], nested = #empty< >>}

  // CHECK-EMPTY:
  // CHECK-NEXT:   func @layer(
  // CHECK-NEXT:       %layers.0.attn.wq.weight: tensor<2*B+1x64xbf16> @[(_:B t0:512), _; sum d, max e] {role = "param"},
  // CHECK-NEXT:       %"odd name": tensor<f64> @[;sum a],
  // CHECK-NEXT:       %0: tensor<f64> @[]
  // CHECK-NEXT:   ) -> (tensor<f64> @[], none) attributes {kind = "layer"} {
  func @layer(%layers.0.attn.wq.weight: tensor<2*B+1x64xbf16> @[(_:B t0:512), _; sum d, max e] {role = "param"},
              %"odd name": tensor<f64> @[; sum a], %0: tensor<f64> @[]) -> (tensor<f64> @[], none) attributes {kind = "layer"} {
    // CHECK-NEXT:     %a, %b.1 = aten.foo.Tensor([%0, none], none) {rule = #rule<[], none, none -> [], 1 (a b) | sum a b>} : tensor<f64> @[], tensor<1xBxi1> @[_, _] loc("a \"b\".py":9 in "up.0")
    %a, %b.1 = aten.foo.Tensor([%0, none], none) {rule = #rule<[] , none,none->[], 1 (a b) | sum a b>}
      : tensor<f64> @[], tensor<1xBxi1> @[_, _] loc("a \"b\".py":9 in "up.0")
    return %a, none
  }
}
