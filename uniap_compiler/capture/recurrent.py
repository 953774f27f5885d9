"""Recurrent layers as loops over the sequence: contractions and activations instead of one kernel that hides them.

    aten.lstm.input(x, [h, c], weights)     ->  nn.contract for all steps at once; per step nn.contract, sigmoid, tanh

The formulas are those of torch.nn.LSTM, GRU and RNN.  Dropout between layers is put between
calls for one layer each before it comes here (functional.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from uniap_compiler.bridge.ops import equation_of

aten = torch.ops.aten
State = tuple[Tensor, ...]
Cell = Callable[[Tensor, Tensor, State], State]
"""(what the input gives to the gates, what the hidden state gives, the state) -> the next state, hidden first."""


def lstm_cell(x: Tensor, h: Tensor, state: State) -> State:
    i, f, g, o = (x + h).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_cell(x: Tensor, h: Tensor, state: State) -> State:
    (xr, xz, xn), (hr, hz, hn) = x.chunk(3, -1), h.chunk(3, -1)
    n = (xn + (xr + hr).sigmoid() * hn).tanh()
    return (n + (xz + hz).sigmoid() * (state[0] - n),)


def tanh_cell(x: Tensor, h: Tensor, state: State) -> State:
    return ((x + h).tanh(),)


def relu_cell(x: Tensor, h: Tensor, state: State) -> State:
    return ((x + h).relu(),)


def _linear(x: Tensor, w: Tensor, bias: Optional[Tensor]) -> Tensor:
    outer = ["s", "b"][2 - (x.dim() - 1) :]
    y = torch.ops.uniap.contract(x, w, equation_of([*outer, "k"], ["n", "k"], [*outer, "n"]))
    return y if bias is None else y + bias


def _run(
    cell: Cell, x: Tensor, first: Sequence[Tensor], weights: Sequence[Tensor], biases: bool, layers: int, both: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """first: [layers * ways, batch, width] per part of the state.  The output, and the last state in the same form."""
    ways = 2 if both else 1
    each = len(weights) // (layers * ways)
    x = x.transpose(0, 1) if batch_first else x
    ends: list[State] = []
    for layer in range(layers):
        outputs = []
        for way in range(ways):
            at = layer * ways + way
            w_in, w_hidden, *rest = weights[at * each : (at + 1) * each]
            b_in, b_hidden = rest[:2] if biases else (None, None)
            projection = rest[-1] if len(rest) % 2 else None
            state: State = tuple(part[at] for part in first)
            steps = []
            given = _linear(x, w_in, b_in).unbind(0)
            for gates in reversed(given) if way else given:
                state = cell(gates, _linear(state[0], w_hidden, b_hidden), state)
                if projection is not None:
                    state = (_linear(state[0], projection, None), *state[1:])
                steps.append(state[0])
            outputs.append(torch.stack(steps[::-1] if way else steps))
            ends.append(state)
        x = torch.cat(outputs, -1) if both else outputs[0]
    return (x.transpose(0, 1) if batch_first else x, *(torch.stack(parts) for parts in zip(*ends)))


def lstm(
    x: Tensor, first: Sequence[Tensor], weights: Sequence[Tensor], biases: bool, layers: int, dropout: float,
    train: bool, both: bool, batch_first: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _run(lstm_cell, x, first, weights, biases, layers, both, batch_first)


def _simple(cell: Cell) -> Callable[..., Any]:
    def run(
        x: Tensor, first: Tensor, weights: Sequence[Tensor], biases: bool, layers: int, dropout: float,
        train: bool, both: bool, batch_first: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        return _run(cell, x, [first], weights, biases, layers, both, batch_first)

    return run


RECURRENT: dict[Any, Callable[..., Any]] = {
    aten.lstm.input: lstm,
    aten.gru.input: _simple(gru_cell),
    aten.rnn_tanh.input: _simple(tanh_cell),
    aten.rnn_relu.input: _simple(relu_cell),
}
