// RUN: uniap-opt %s --split-input --verify-diagnostics

// expected-error@+1 {{found 'm': a module's name starts with @}}
module m {
}
// -----
module @m {
  // expected-error@+1 {{found ')': a parameter is written %name: tensor<...>}}
  func @f(%x) -> () {
    return
  }
}
// -----
module @m {
  // expected-error@+1 {{found '{': -> and the result types in parentheses follow the parameters}}
  func @f() {
    return
  }
}
// -----
module @m {
  func @f(%x: tensor<4xf32>) -> (tensor<4xf32>) {
    // expected-error@+1 {{found 'relu': an op's name is two or more words joined by dots}}
    %y = relu(%x) : tensor<4xf32>
    return %y
  }
}
// -----
module @m {
  func @f(%x: tensor<4xf32>) -> (tensor<4xf32>) {
    // expected-error@+1 {{found 'x': a value starts with %}}
    %y = aten.relu(x) : tensor<4xf32>
    return %y
  }
}
// -----
module @m {
  func @f(%x: tensor<4xf32>) -> (tensor<4xf32>) {
    // expected-error@+1 {{found '%x': a comma stands between operands}}
    %y = aten.add(%x %x) : tensor<4xf32>
    return %y
  }
}
// -----
module @m {
  func @f(%x: tensor<4xf32>) -> (tensor<4xf32>) {
    // expected-error@+1 {{found 'f32': a type is written tensor<Bx64xf32>}}
    %y = aten.relu(%x) : f32
    return %y
  }
}
// -----
module @m {
  func @f(%x: tensor<4xf32>) -> (tensor<4xf32>) {
    // expected-error@+1 {{found ':': an attribute is written key = value}}
    %y = aten.relu(%x) {dim: 1} : tensor<4xf32>
    return %y
  }
}
// -----
module @m {
  func @f(%x: tensor<4xf32>) -> (tensor<4xf32>) {
    // expected-error@+1 {{found '}': an attribute's value is a number}}
    %y = aten.relu(%x) {dim = } : tensor<4xf32>
    return %y
  }
}
// -----
module @m {
  func @f(%x: tensor<4xf32>) -> (tensor<4xf32>) {
    // expected-error@+1 {{found 'keepdim': a comma stands between attributes}}
    %y = aten.sum(%x) {dim = 1 keepdim = true} : tensor<4xf32>
    return %y
  }
}
// -----
module @m {
  func @f(%x: tensor<4xf32>) -> (tensor<4xf32>) {
    %y = aten.relu(%x) : tensor<4xf32>
  // expected-error@+1 {{found '}': a func ends with `return`}}
  }
}
// -----
module @m {
  func @f() -> () {
    return
  }
// expected-error@+2 {{found 'module': a func, an op, or the } that closes the module}}

module @n {
}
// -----
module @m {
}
// expected-error@+1 {{found 'module': a text holds one module}}
module @n {
}
// -----
// expected-error@+1 {{the text ends: a func, an op, or the } that closes the module}}
module @m {
// -----
// expected-error@+1 {{the text is uniap-ir version 7, and this uniap reads version 1}}
// uniap-ir 7
module @m {
}
// -----
module @m {
  // expected-error@+1 {{f33 is not a dtype: f64 f32}}
  func @f(%x: tensor<4xf33>) -> () {
    return
  }
}
// -----
module @m {
  // expected-error@+1 {{'b' is not a size such as 512, B or 2*B+1}}
  plan.x {layout = @[_:b]}
}
// -----
module @m {
  // expected-error@+1 {{'mean d' is not a pending axis}}
  plan.x {layout = @[a; mean d]}
}
// -----
module @m {
  // expected-error@+1 {{axis a is used twice in @[a, a]}}
  plan.x {layout = @[a, a]}
}
// -----
module @m {
  // expected-error@+1 {{the layout @[a, _] has 2 dims and tensor<4xf32> has 1}}
  func @f(%x: tensor<4xf32> @[a, _]) -> () {
    return
  }
}
// -----
module @m {
  // expected-error@+1 {{#rule<b k> lacks the -> between operands and results}}
  plan.x {rule = #rule<b k>}
}
// -----
module @m {
  // expected-error@+1 {{'mean' is not a clause of a rule}}
  plan.x {rule = #rule<b k -> b | mean k>}
}
// -----
module @m {
  // expected-error@+1 {{names the factor n, which no operand and no result has}}
  plan.x {rule = #rule<b k -> b | sum n>}
}
// -----
module @m {
  // expected-error@+1 {{there are 1 operands}}
  plan.x {rule = #rule<b k -> b | sum k | linear 1>}
}
// -----
module @m {
  // expected-error@+1 {{does not list the dims of a tensor}}
  plan.x {rule = #rule<b (k -> b>}
}
// -----
module @m {
  // expected-error@+1 {{the attribute a is given twice}}
  plan.x {a = 1, a = 2}
}
// -----
module @m {
  func @f(%x: tensor<4xf32>) -> (tensor<4xf32>) {
    // expected-error@+1 {{%z is not defined in func @f}}
    %y = aten.relu(%z) : tensor<4xf32>
    return %y
  }
}
// -----
module @m {
  func @f(%x: tensor<4xf32>) -> (tensor<4xf32>) {
    // expected-error@+1 {{aten.relu has 1 results and 0 types}}
    %y = aten.relu(%x)
    return %y
  }
}
// -----
module @m {
  func @f(%x: tensor<4xf32>) -> () {
    // expected-error@+1 {{%x is defined twice in func @f}}
    %x = aten.relu(%x) : tensor<4xf32>
    return
  }
}
// -----
module @m {
  func @f() -> () {
    return
  }
  // expected-error@+1 {{func @f is defined twice}}
  func @f() -> () {
    return
  }
}
// -----
module @m {
  func @f(%x: tensor<4xf32>) -> (tensor<5xf32>) {
    // expected-error@+1 {{@f returns (tensor<4xf32>), which is not what its head says}}
    return %x
  }
}
// -----
module @m {
  // expected-error@+1 {{plan.x stands in the module and has operands}}
  plan.x(%a)
}
