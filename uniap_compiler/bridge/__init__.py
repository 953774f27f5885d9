"""Between the IR and torch, both ways: op schemas, the `nn.*` ops, an interpreter of funcs, derivatives of funcs."""
