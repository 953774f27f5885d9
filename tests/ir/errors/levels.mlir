// RUN: uniap-opt %s --split-input --verify-diagnostics
// Every promise of every level, broken once.  test_levels.py checks that none is missing.

module @m attributes {level = captured} {
  // expected-error@+1 {{@main does not name every result in `results`}}
  func @main(%x: tensor<f32> {role = "input"}) -> (tensor<f32>, tensor<f32>) attributes {results = ["loss"]} {
    return %x, %x
  }
}
// -----
// expected-error@* {{the calls form a cycle}}
module @m attributes {level = layered} {
  func @f(%x: tensor<f32>) -> (tensor<f32>) {
    %y = plan.call @g(%x) : tensor<f32>
    return %y
  }
  func @g(%x: tensor<f32>) -> (tensor<f32>) {
    %y = plan.call @f(%x) : tensor<f32>
    return %y
  }
}
// -----
module @m attributes {level = captured} {
  func @main(%x: tensor<f32> {role = "input"}) -> (tensor<f32>) attributes {results = ["loss"]} {
    // expected-error@+1 {{aten.add_.Tensor changes its operand in place}}
    %y = aten.add_.Tensor(%x, %x) : tensor<f32>
    return %y
  }
}
// -----
// expected-error@* {{@main is the only func}}
module @m attributes {level = captured} {
}
// -----
module @m attributes {level = captured} {
  func @main(%x: tensor<f32> {role = "input"}) -> (tensor<f32>) attributes {results = ["loss"]} {
    // expected-error@+1 {{comm.first is neither an aten nor an nn op}}
    %y = comm.first(%x) {axes = ["a"]} : tensor<f32>
    return %y
  }
}
// -----
// expected-error@* {{the func @main is missing}}
module @m attributes {level = layered} {
}
// -----
module @m attributes {level = layered} {
  func @main(%x: tensor<f32> {role = "input"}) -> (tensor<f32>) attributes {results = ["loss"]} {
    // expected-error@+1 {{@main has only calls, not aten.neg}}
    %y = aten.neg(%x) : tensor<f32>
    return %y
  }
}
// -----
module @m attributes {level = layered} {
  func @leaf(%x: tensor<f32> {role = "activation"}) -> (tensor<f32>) {
    return %x
  }
  func @layer(%x: tensor<f32> {role = "activation"}) -> (tensor<f32>) {
    // expected-error@+1 {{the layer @layer has a call}}
    %y = plan.call @leaf(%x) : tensor<f32>
    return %y
  }
  func @main(%x: tensor<f32> {role = "input"}) -> (tensor<f32>) attributes {results = ["loss"]} {
    return %x
  }
}
// -----
module @m attributes {level = layered} {
  func @layer(%x: tensor<f32> {role = "activation"}) -> (tensor<f32>) attributes {kind = "layer"} {
    return %x
  }
  func @main(%x: tensor<f32> {role = "input"}) -> (tensor<f32>) attributes {results = ["loss"]} {
    // expected-error@+1 {{a call of a layer does not name its `layer`}}
    %y = plan.call @layer(%x) : tensor<f32>
    return %y
  }
}
// -----
module @m attributes {level = captured} {
  // expected-error@+1 {{a parameter of @main has no `role`: input, param, buffer, constant or random}}
  func @main(%x: tensor<f32>) -> (tensor<f32>) attributes {results = ["loss"]} {
    return %x
  }
}
// -----
module @m attributes {level = captured} {
  // expected-error@+1 {{the first result of @main is not a scalar loss}}
  func @main(%x: tensor<4xf32> {role = "input"}) -> (tensor<4xf32>) attributes {results = ["loss"]} {
    return %x
  }
}
// -----
module @m attributes {level = layered} {
  // expected-error@+1 {{a parameter of @layer has no `role`: activation, input, param, buffer, constant, prelude or random}}
  func @layer(%x: tensor<f32> {role = "saved"}) -> (tensor<f32>) attributes {kind = "layer"} {
    return %x
  }
  func @main(%x: tensor<f32> {role = "input"}) -> (tensor<f32>) attributes {results = ["loss"]} {
    return %x
  }
}
// -----
// expected-error@* {{the func @step is missing}}
module @m attributes {level = differentiated} {
}
// -----
module @m attributes {level = differentiated} {
  // expected-error@+1 {{the first result of @step is not a scalar loss}}
  func @step(%x: tensor<f32> {role = "input"}) -> (tensor<f32>) attributes {results = ["value"]} {
    return %x
  }
}
// -----
module @m attributes {level = differentiated} {
  func @f.forward(%x: tensor<f32> {role = "activation"}) -> (tensor<f32>) attributes {kind = "forward"} {
    return %x
  }
  func @step(%x: tensor<f32> {role = "input"}) -> (tensor<f32>) attributes {results = ["loss"]} {
    // expected-error@+1 {{a call's `phase` is not the `kind` of the func that it calls}}
    %y = plan.call @f.forward(%x) {layer = "f", phase = "backward"} : tensor<f32>
    return %y
  }
}
// -----
module @m attributes {level = differentiated} {
  // expected-error@+1 {{`of` of @f.backward names no forward func}}
  func @f.backward(%x: tensor<f32> {role = "activation"}) -> () attributes {kind = "backward", of = @f.forward} {
    return
  }
  func @step(%x: tensor<f32> {role = "input"}) -> (tensor<f32>) attributes {results = ["loss"]} {
    return %x
  }
}
// -----
module @m attributes {level = differentiated} {
  func @f.forward(%x: tensor<f32> {role = "activation"}) -> (tensor<f32>) attributes {kind = "forward"} {
    return %x
  }
  // expected-error@+1 {{a parameter of @f.backward stands for no value of its forward func}}
  func @f.backward(%d: tensor<4xf32> {role = "tangent", of = "x"}) -> () attributes {kind = "backward", of = @f.forward, results = []} {
    return
  }
  func @step(%x: tensor<f32> {role = "input"}) -> (tensor<f32>) attributes {results = ["loss"]} {
    return %x
  }
}
// -----
module @m attributes {level = differentiated} {
  func @f.forward(%x: tensor<f32> {role = "activation"}) -> (tensor<f32>) attributes {kind = "forward"} {
    return %x
  }
  // expected-error@+1 {{a result of @f.backward is not the gradient of a parameter of its forward func}}
  func @f.backward(%d: tensor<f32> {role = "tangent", of = "x"}) -> (tensor<f32>) attributes {kind = "backward", of = @f.forward, results = ["grad:w"]} {
    return %d
  }
  func @step(%x: tensor<f32> {role = "input"}) -> (tensor<f32>) attributes {results = ["loss"]} {
    return %x
  }
}
// -----
module @m attributes {level = annotated} {
  func @f.forward(%x: tensor<f32> {role = "activation"}) -> (tensor<f32>) attributes {kind = "forward"} {
    %a = aten.neg(%x) {rule = #rule<[] -> [] | linear 0>} : tensor<f32>
    // expected-error@+1 {{aten.exp has no sharding rule}}
    %y = aten.exp(%a) : tensor<f32>
    return %y
  }
  func @step(%x: tensor<f32> {role = "input"}) -> (tensor<f32>) attributes {results = ["loss"]} {
    return %x
  }
}
// -----
module @m attributes {level = planned} {
  func @f.forward(%x: tensor<f32> {role = "activation"}) -> (tensor<f32>) attributes {kind = "forward"} {
    return %x
  }
  func @step(%x: tensor<f32> {role = "input"}) -> (tensor<f32>) attributes {results = ["loss"]} {
    // expected-error@+1 {{a call of @step has no `stage`}}
    %y = plan.call @f.forward(%x) {layer = "f", phase = "forward"} : tensor<f32>
    return %y
  }
}
// -----
module @m attributes {level = planned} {
  func @f.forward(%x: tensor<f32> {role = "activation"}) -> (tensor<f32>) attributes {kind = "forward"} {
    return %x
  }
  func @step(%x: tensor<f32> {role = "input"}) -> (tensor<f32>) attributes {results = ["loss"]} {
    // expected-error@+1 {{a call of @step has no `strategy`}}
    %y = plan.call @f.forward(%x) {layer = "f", phase = "forward", stage = 0} : tensor<f32>
    return %y
  }
}
// -----
module @m attributes {level = staged} {
  // expected-error@+1 {{@stage_0.forward does not name every parameter in `args`}}
  func @stage_0.forward(%x: tensor<f32>) -> () attributes {args = [], results = []} {
    return
  }
}
// -----
module @m attributes {level = local} {
  // expected-error@+1 {{@stage_0.forward still has layouts}}
  func @stage_0.forward(%x: tensor<4xf32> @[a]) -> () attributes {args = ["param:w"]} {
    return
  }
}
// -----
module @m attributes {level = local} {
  // expected-error@+1 {{@stage_0.forward still has sizes that depend on the batch}}
  func @stage_0.forward(%x: tensor<Bxf32>) -> () attributes {args = ["param:w"]} {
    return
  }
}
// -----
module @m attributes {level = local} {
  func @stage_0.forward(%x: tensor<4xf32>) -> () attributes {args = ["param:w"]} {
    // expected-error@+1 {{mesh.axis cannot be generated}}
    mesh.axis(%x)
    return
  }
}
// -----
module @m attributes {level = local} {
  func @stage_0.forward(%x: tensor<4xf32>) -> (tensor<4xf32>) attributes {args = ["param:w"]} {
    // expected-error@+1 {{comm.all_reduce does not name its process `group`}}
    %y = comm.all_reduce(%x) {axes = ["a"], op = "sum"} : tensor<4xf32>
    return %y
  }
}
