// uniap-ir 1
// A residual MLP of three blocks and a head on 2 stages x (dp=2, tp=2), two micro-batches of 4, written by hand:
// x + relu(x up' + bias) down', the mean of squares, and explicit derivatives.
module @two_stages attributes {level = local, spec = "mlp.py:task", dtype = f64, global_batch = 8, optimizer = #optimizer<kind = "adamw", lr = 0.01>} {
  plan.mesh @mesh {axes = #axes<a = 2, b = 2>, stages = 2, world = 8}
  plan.plan @plan {stages = 2, micro_batches = 2, schedule = "1f1b"}
  plan.parameter @blocks.0.up {of = "blocks.0.up", shape = [6, 4], dtype = f64, stage = 0, layout = @[b, _], grad = true, home = true, aliases = []}
  plan.parameter @blocks.0.bias {of = "blocks.0.bias", shape = [6], dtype = f64, stage = 0, layout = @[b], grad = true, home = true, aliases = []}
  plan.parameter @blocks.0.down {of = "blocks.0.down", shape = [4, 6], dtype = f64, stage = 0, layout = @[_, b], grad = true, home = true, aliases = []}
  plan.parameter @blocks.1.up {of = "blocks.1.up", shape = [6, 4], dtype = f64, stage = 0, layout = @[b, _], grad = true, home = true, aliases = []}
  plan.parameter @blocks.1.bias {of = "blocks.1.bias", shape = [6], dtype = f64, stage = 0, layout = @[b], grad = true, home = true, aliases = []}
  plan.parameter @blocks.1.down {of = "blocks.1.down", shape = [4, 6], dtype = f64, stage = 0, layout = @[_, b], grad = true, home = true, aliases = []}
  plan.parameter @blocks.2.up {of = "blocks.2.up", shape = [6, 4], dtype = f64, stage = 1, layout = @[b, _], grad = true, home = true, aliases = []}
  plan.parameter @blocks.2.bias {of = "blocks.2.bias", shape = [6], dtype = f64, stage = 1, layout = @[b], grad = true, home = true, aliases = []}
  plan.parameter @blocks.2.down {of = "blocks.2.down", shape = [4, 6], dtype = f64, stage = 1, layout = @[_, b], grad = true, home = true, aliases = []}
  // The head's optimizer state is split over the data axis: the layers read a gathered copy.
  plan.parameter @head.weight {of = "head.weight", shape = [2, 4], dtype = f64, stage = 1, layout = @[_, a], grad = true, home = true, aliases = []}
  plan.parameter @"head.weight@copy0" {of = "head.weight", shape = [2, 4], dtype = f64, stage = 1, layout = @[_, _], grad = true, home = false, aliases = []}
  plan.input @batch.x {shape = [4, 4], dtype = f64, stages = [0]}
  plan.input @targets {shape = [4, 2], dtype = f64, stages = [1]}
  sched.stage @stage_0 {table = [["forward", 0], ["send", "h2", 0], ["forward", 1], ["send", "h2", 1], ["recv_grad", "h2", 0], ["backward", 0], ["recv_grad", "h2", 1], ["backward", 1]]}
  sched.stage @stage_1 {table = [["recv", "h2", 0], ["forward", 0], ["backward", 0], ["send_grad", "h2", 0], ["recv", "h2", 1], ["forward", 1], ["backward", 1], ["send_grad", "h2", 1]]}

  func @block.dp2.tp2.forward(%x: tensor<2x4xf64>, %up: tensor<3x4xf64>, %bias: tensor<3xf64>, %down: tensor<4x3xf64>) -> (tensor<2x4xf64>, tensor<2x4xf64>, tensor<2x3xf64>, tensor<2x3xf64>) attributes {kind = "forward", results = ["value", "saved", "saved", "saved"]} {
    %h = nn.contract(%x, %up) {equation = "b k, n k -> b n"} : tensor<2x3xf64> loc("mlp.py":12 in "blocks.0")
    %h_1 = aten.add.Tensor(%h, %bias) : tensor<2x3xf64> loc("mlp.py":12 in "blocks.0")
    %relu = aten.relu(%h_1) : tensor<2x3xf64> loc("mlp.py":13 in "blocks.0")
    %mask = aten.gt.Scalar(%relu) {other = 0} : tensor<2x3xi1> loc("mlp.py":13 in "blocks.0")
    %mask_1 = aten._to_copy(%mask) {dtype = f64} : tensor<2x3xf64> loc("mlp.py":13 in "blocks.0")
    %y = nn.contract(%relu, %down) {equation = "b k, n k -> b n"} : tensor<2x4xf64> loc("mlp.py":14 in "blocks.0")
    %y_1 = comm.all_reduce(%y) {group = "b", op = "sum"} : tensor<2x4xf64> loc("mlp.py":14 in "blocks.0")
    %y_2 = aten.add.Tensor(%x, %y_1) : tensor<2x4xf64> loc("mlp.py":14 in "blocks.0")
    return %y_2, %x, %relu, %mask_1
  }
  func @block.dp2.tp2.backward(%up: tensor<3x4xf64>, %down: tensor<4x3xf64>, %x: tensor<2x4xf64>, %relu: tensor<2x3xf64>, %mask: tensor<2x3xf64>, %grad: tensor<2x4xf64>) -> (tensor<2x4xf64>, tensor<3x4xf64>, tensor<3xf64>, tensor<4x3xf64>) attributes {kind = "backward"} {
    %down.grad = nn.contract(%grad, %relu) {equation = "b n, b k -> n k"} : tensor<4x3xf64> loc("mlp.py":14 in "blocks.0")
    %relu.grad = nn.contract(%grad, %down) {equation = "b n, n k -> b k"} : tensor<2x3xf64> loc("mlp.py":14 in "blocks.0")
    %h.grad = aten.mul.Tensor(%relu.grad, %mask) : tensor<2x3xf64> loc("mlp.py":13 in "blocks.0")
    %bias.grad = aten.sum.dim_IntList(%h.grad) {dim = [0]} : tensor<3xf64> loc("mlp.py":12 in "blocks.0")
    %up.grad = nn.contract(%h.grad, %x) {equation = "b n, b k -> n k"} : tensor<3x4xf64> loc("mlp.py":12 in "blocks.0")
    %x.grad = nn.contract(%h.grad, %up) {equation = "b n, n k -> b k"} : tensor<2x4xf64> loc("mlp.py":12 in "blocks.0")
    %x.grad_1 = comm.all_reduce(%x.grad) {group = "b", op = "sum"} : tensor<2x4xf64> loc("mlp.py":12 in "blocks.0")
    %x.grad_2 = aten.add.Tensor(%x.grad_1, %grad) : tensor<2x4xf64> loc("mlp.py":14 in "blocks.0")
    return %x.grad_2, %up.grad, %bias.grad, %down.grad
  }
  func @head.dp2.tp2.forward(%x: tensor<2x4xf64>, %weight: tensor<2x4xf64>, %target: tensor<2x2xf64>) -> (tensor<f64>, tensor<2x2xf64>) attributes {kind = "forward"} {
    %logits = nn.contract(%x, %weight) {equation = "b k, n k -> b n"} : tensor<2x2xf64> loc("mlp.py":30 in "head")
    %error = aten.sub.Tensor(%logits, %target) : tensor<2x2xf64> loc("mlp.py":36)
    %loss = aten.pow.Tensor_Scalar(%error) {exponent = 2} : tensor<2x2xf64> loc("mlp.py":36)
    %loss_1 = aten.sum(%loss) : tensor<f64> loc("mlp.py":36)
    %loss_2 = aten.div.Tensor(%loss_1) {other = 8} : tensor<f64> loc("mlp.py":36)
    return %loss_2, %error
  }
  func @head.dp2.tp2.backward(%x: tensor<2x4xf64>, %weight: tensor<2x4xf64>, %error: tensor<2x2xf64>, %grad: tensor<f64>) -> (tensor<2x4xf64>, tensor<2x4xf64>) attributes {kind = "backward"} {
    %scaled = aten.mul.Tensor(%error, %grad) : tensor<2x2xf64> loc("mlp.py":36)
    %error.grad = aten.mul.Tensor(%scaled) {other = 0.25} : tensor<2x2xf64> loc("mlp.py":36)
    %weight.grad = nn.contract(%error.grad, %x) {equation = "b n, b k -> n k"} : tensor<2x4xf64> loc("mlp.py":30 in "head")
    %x.grad = nn.contract(%error.grad, %weight) {equation = "b n, n k -> b k"} : tensor<2x4xf64> loc("mlp.py":30 in "head")
    return %x.grad, %weight.grad
  }

  func @stage_0.forward(%x: tensor<4x4xf64>, %blocks.0.up: tensor<3x4xf64>, %blocks.0.bias: tensor<3xf64>, %blocks.0.down: tensor<4x3xf64>, %blocks.1.up: tensor<3x4xf64>, %blocks.1.bias: tensor<3xf64>, %blocks.1.down: tensor<4x3xf64>) -> (tensor<2x4xf64>, tensor<2x4xf64>, tensor<2x3xf64>, tensor<2x3xf64>, tensor<2x4xf64>, tensor<2x3xf64>, tensor<2x3xf64>) attributes {kind = "segment", args = ["input:batch.x", "param:blocks.0.up", "param:blocks.0.bias", "param:blocks.0.down", "param:blocks.1.up", "param:blocks.1.bias", "param:blocks.1.down"], results = ["send:h2", "saved:blocks.0.x", "saved:blocks.0.relu", "saved:blocks.0.mask", "saved:blocks.1.x", "saved:blocks.1.relu", "saved:blocks.1.mask"]} {
    %x_1 = comm.slice(%x) {group = "a", dim = 0} : tensor<2x4xf64>
    %h1, %x0, %relu0, %mask0 = plan.call @block.dp2.tp2.forward(%x_1, %blocks.0.up, %blocks.0.bias, %blocks.0.down) {layer = "blocks.0"} : tensor<2x4xf64>, tensor<2x4xf64>, tensor<2x3xf64>, tensor<2x3xf64>
    %h2, %x1, %relu1, %mask1 = plan.call @block.dp2.tp2.forward(%h1, %blocks.1.up, %blocks.1.bias, %blocks.1.down) {layer = "blocks.1"} : tensor<2x4xf64>, tensor<2x4xf64>, tensor<2x3xf64>, tensor<2x3xf64>
    return %h2, %x0, %relu0, %mask0, %x1, %relu1, %mask1
  }
  func @stage_0.backward(%h2.grad: tensor<2x4xf64>, %blocks.1.up: tensor<3x4xf64>, %blocks.1.down: tensor<4x3xf64>, %x1: tensor<2x4xf64>, %relu1: tensor<2x3xf64>, %mask1: tensor<2x3xf64>, %blocks.0.up: tensor<3x4xf64>, %blocks.0.down: tensor<4x3xf64>, %x0: tensor<2x4xf64>, %relu0: tensor<2x3xf64>, %mask0: tensor<2x3xf64>) -> (tensor<3x4xf64>, tensor<3xf64>, tensor<4x3xf64>, tensor<3x4xf64>, tensor<3xf64>, tensor<4x3xf64>) attributes {kind = "segment", args = ["recv_grad:h2", "param:blocks.1.up", "param:blocks.1.down", "saved:blocks.1.x", "saved:blocks.1.relu", "saved:blocks.1.mask", "param:blocks.0.up", "param:blocks.0.down", "saved:blocks.0.x", "saved:blocks.0.relu", "saved:blocks.0.mask"], results = ["grad:blocks.1.up", "grad:blocks.1.bias", "grad:blocks.1.down", "grad:blocks.0.up", "grad:blocks.0.bias", "grad:blocks.0.down"]} {
    %h1.grad, %up1.grad, %bias1.grad, %down1.grad = plan.call @block.dp2.tp2.backward(%blocks.1.up, %blocks.1.down, %x1, %relu1, %mask1, %h2.grad) {layer = "blocks.1"} : tensor<2x4xf64>, tensor<3x4xf64>, tensor<3xf64>, tensor<4x3xf64>
    %x.grad, %up0.grad, %bias0.grad, %down0.grad = plan.call @block.dp2.tp2.backward(%blocks.0.up, %blocks.0.down, %x0, %relu0, %mask0, %h1.grad) {layer = "blocks.0"} : tensor<2x4xf64>, tensor<3x4xf64>, tensor<3xf64>, tensor<4x3xf64>
    return %up1.grad, %bias1.grad, %down1.grad, %up0.grad, %bias0.grad, %down0.grad
  }
  func @stage_0.reduce_gradients(%up0: tensor<3x4xf64>, %bias0: tensor<3xf64>, %down0: tensor<4x3xf64>, %up1: tensor<3x4xf64>, %bias1: tensor<3xf64>, %down1: tensor<4x3xf64>) -> (tensor<3x4xf64>, tensor<3xf64>, tensor<4x3xf64>, tensor<3x4xf64>, tensor<3xf64>, tensor<4x3xf64>) attributes {kind = "segment", args = ["grad:blocks.0.up", "grad:blocks.0.bias", "grad:blocks.0.down", "grad:blocks.1.up", "grad:blocks.1.bias", "grad:blocks.1.down"], results = ["grad:blocks.0.up", "grad:blocks.0.bias", "grad:blocks.0.down", "grad:blocks.1.up", "grad:blocks.1.bias", "grad:blocks.1.down"]} {
    %up0_1 = comm.all_reduce(%up0) {group = "a", op = "sum"} : tensor<3x4xf64>
    %bias0_1 = comm.all_reduce(%bias0) {group = "a", op = "sum"} : tensor<3xf64>
    %down0_1 = comm.all_reduce(%down0) {group = "a", op = "sum"} : tensor<4x3xf64>
    %up1_1 = comm.all_reduce(%up1) {group = "a", op = "sum"} : tensor<3x4xf64>
    %bias1_1 = comm.all_reduce(%bias1) {group = "a", op = "sum"} : tensor<3xf64>
    %down1_1 = comm.all_reduce(%down1) {group = "a", op = "sum"} : tensor<4x3xf64>
    return %up0_1, %bias0_1, %down0_1, %up1_1, %bias1_1, %down1_1
  }

  func @stage_1.forward(%h2: tensor<2x4xf64>, %blocks.2.up: tensor<3x4xf64>, %blocks.2.bias: tensor<3xf64>, %blocks.2.down: tensor<4x3xf64>, %head.weight: tensor<2x4xf64>, %targets: tensor<4x2xf64>) -> (tensor<2x4xf64>, tensor<2x4xf64>, tensor<2x3xf64>, tensor<2x3xf64>, tensor<2x2xf64>, tensor<f64>) attributes {kind = "segment", args = ["recv:h2", "param:blocks.2.up", "param:blocks.2.bias", "param:blocks.2.down", "param:head.weight@copy0", "input:targets"], results = ["saved:h3", "saved:blocks.2.x", "saved:blocks.2.relu", "saved:blocks.2.mask", "saved:head.error", "loss"]} {
    %h3, %x2, %relu2, %mask2 = plan.call @block.dp2.tp2.forward(%h2, %blocks.2.up, %blocks.2.bias, %blocks.2.down) {layer = "blocks.2"} : tensor<2x4xf64>, tensor<2x4xf64>, tensor<2x3xf64>, tensor<2x3xf64>
    %targets_1 = comm.slice(%targets) {group = "a", dim = 0} : tensor<2x2xf64>
    %loss, %error = plan.call @head.dp2.tp2.forward(%h3, %head.weight, %targets_1) {layer = "head"} : tensor<f64>, tensor<2x2xf64>
    %loss_1 = comm.first(%loss) {group = "b"} : tensor<f64>
    return %h3, %x2, %relu2, %mask2, %error, %loss_1
  }
  func @stage_1.backward(%h3: tensor<2x4xf64>, %head.weight: tensor<2x4xf64>, %error: tensor<2x2xf64>, %seed: tensor<f64>, %blocks.2.up: tensor<3x4xf64>, %blocks.2.down: tensor<4x3xf64>, %x2: tensor<2x4xf64>, %relu2: tensor<2x3xf64>, %mask2: tensor<2x3xf64>) -> (tensor<2x4xf64>, tensor<2x4xf64>, tensor<3x4xf64>, tensor<3xf64>, tensor<4x3xf64>) attributes {kind = "segment", args = ["saved:h3", "param:head.weight@copy0", "saved:head.error", "seed:loss", "param:blocks.2.up", "param:blocks.2.down", "saved:blocks.2.x", "saved:blocks.2.relu", "saved:blocks.2.mask"], results = ["send_grad:h2", "grad:head.weight@copy0", "grad:blocks.2.up", "grad:blocks.2.bias", "grad:blocks.2.down"]} {
    %h3.grad, %weight.grad = plan.call @head.dp2.tp2.backward(%h3, %head.weight, %error, %seed) {layer = "head"} : tensor<2x4xf64>, tensor<2x4xf64>
    %h2.grad, %up2.grad, %bias2.grad, %down2.grad = plan.call @block.dp2.tp2.backward(%blocks.2.up, %blocks.2.down, %x2, %relu2, %mask2, %h3.grad) {layer = "blocks.2"} : tensor<2x4xf64>, tensor<3x4xf64>, tensor<3xf64>, tensor<4x3xf64>
    return %h2.grad, %weight.grad, %up2.grad, %bias2.grad, %down2.grad
  }
  func @stage_1.reduce_gradients(%up2: tensor<3x4xf64>, %bias2: tensor<3xf64>, %down2: tensor<4x3xf64>, %weight: tensor<2x4xf64>) -> (tensor<3x4xf64>, tensor<3xf64>, tensor<4x3xf64>, tensor<2x2xf64>) attributes {kind = "segment", args = ["grad:blocks.2.up", "grad:blocks.2.bias", "grad:blocks.2.down", "grad:head.weight@copy0"], results = ["grad:blocks.2.up", "grad:blocks.2.bias", "grad:blocks.2.down", "grad:head.weight"]} {
    %up2_1 = comm.all_reduce(%up2) {group = "a", op = "sum"} : tensor<3x4xf64>
    %bias2_1 = comm.all_reduce(%bias2) {group = "a", op = "sum"} : tensor<3xf64>
    %down2_1 = comm.all_reduce(%down2) {group = "a", op = "sum"} : tensor<4x3xf64>
    %weight_1 = comm.reduce_scatter(%weight) {group = "a", dim = 1} : tensor<2x2xf64>
    return %up2_1, %bias2_1, %down2_1, %weight_1
  }
  func @stage_1.refresh_parameters(%head.weight: tensor<2x2xf64>) -> (tensor<2x4xf64>) attributes {kind = "segment", args = ["param:head.weight"], results = ["param:head.weight@copy0"]} {
    %head.weight_1 = comm.all_gather(%head.weight) {group = "a", dim = 1} : tensor<2x4xf64>
    return %head.weight_1
  }
}
