// RUN: uniap-opt %s --split-input --verify-diagnostics
// Values, calls, our own ops, rules.

module @m {
  func @f(%x: tensor<4xf32>) -> () {
    // expected-error@+1 {{%b is used before it is defined}}
    %a = aten.exp(%b) : tensor<4xf32>
    %b = aten.exp(%x) : tensor<4xf32>
    return
  }
}
// -----
// expected-error@* {{there is no level sorted}}
module @m attributes {level = sorted} {
}
// -----
module @m {
  func @g(%x: tensor<4xf32>) -> (tensor<4xf32>) {
    return %x
  }
  func @f(%x: tensor<4xf32>, %y: tensor<5xf32>) -> () {
    %a = plan.call @g(%x) : tensor<4xf32>
    // expected-error@+1 {{the call has %y: tensor<5xf32> where @g has %x: tensor<4xf32>}}
    %b = plan.call @g(%y) : tensor<4xf32>
    return
  }
}
// -----
module @m {
  func @g(%x: tensor<4xf32>) -> (tensor<4xf32>) {
    return %x
  }
  func @f(%x: tensor<4xf32>) -> () {
    // expected-error@+1 {{the call has 2 operands, and @g has 1}}
    %a = plan.call @g(%x, %x) : tensor<4xf32>
    return
  }
}
// -----
module @m {
  func @f(%x: tensor<4xf32>) -> () {
    // expected-error@+1 {{plan.call names @g, and the module has no such func}}
    plan.call @g(%x)
    return
  }
}
// -----
module @m {
  func @f(%x: tensor<4xf32>) -> () {
    // expected-error@+1 {{nn.contract has 1 operands and takes 2}}
    %a = nn.contract(%x) {equation = "a -> a"} : tensor<4xf32>
    return
  }
}
// -----
module @m {
  func @f(%x: tensor<4xf32>) -> () {
    // expected-error@+1 {{nn.contract needs the attribute equation}}
    %a = nn.contract(%x, %x) : tensor<4xf32>
    return
  }
}
// -----
module @m {
  func @f(%x: tensor<4xf32>) -> () {
    // expected-error@+1 {{the rule of aten.exp has 2 operands and the op 1}}
    %a = aten.exp(%x) {rule = #rule<a, a -> a>} : tensor<4xf32>
    return
  }
}
// -----
module @m {
  func @f(%x: tensor<4xf32>) -> () {
    // expected-error@+1 {{do not agree on whether an operand that is none is there}}
    %a = aten.clamp.Tensor(%x, none, none) {rule = #rule<a, a, none -> a>} : tensor<4xf32>
    return
  }
}
// -----
module @m {
  func @f(%x: tensor<4xf32>) -> () {
    // expected-error@+1 {{the rule of aten.exp gives 2 dims to %x: tensor<4xf32>}}
    %a = aten.exp(%x) {rule = #rule<a b -> a>} : tensor<4xf32>
    return
  }
}
// -----
module @m {
  func @f(%x: tensor<Bx4xf32>) -> () {
    %a = aten.view(%x) {rule = #rule<b k -> (b k) | size b=B k=4>} : tensor<4*Bxf32>
    // expected-error@+1 {{the factors (b k) do not multiply to the size 4*B of %c}}
    %c = aten.view(%x) {rule = #rule<b d -> (b k) | size b=B k=2>} : tensor<4*Bxf32>
    return
  }
}
// -----
module @m {
  func @f(%x: tensor<4xf32>) -> () {
    // expected-error@+1 {{has a 1 for a dim of size 4 of %x}}
    %a = aten.exp(%x) {rule = #rule<1 -> 1>} : tensor<4xf32>
    return
  }
}
// -----
module @m {
  func @f(%x: tensor<4xf32>) -> () {
    // expected-error@+1 {{does not say what becomes of the factor a: sum, max, copy or keep}}
    %a = aten.sum(%x) {rule = #rule<a -> []>} : tensor<f32>
    return
  }
}
