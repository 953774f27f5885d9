"""Choices that the user makes for the solver: `[LAYERS:]key=value,...[;...]`.

    pp=2,dp=2                                   two stages, data parallel inside
    dp=4,shard=parameters,recompute=full
    layers.[01]:tp=4;layers.[23]:dp=4           LAYERS is a glob over layer names
    pp=2;layers.2:stage=1

What is not named is left to the solver.  pp and micro_batches hold for the whole model; dp and tp are degrees inside
a stage; a later clause wins where two name the same layer and key.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Union

from uniap_compiler.ir import Diagnostic
from uniap_compiler.passes.analysis.cost.strategy_cost import BOUNDARIES, RECOMPUTES, SHARDS, Strategy

Choice = Union[int, str]

INTEGERS = ("pp", "dp", "tp", "micro_batches", "stage")
WORDS: dict[str, tuple[str, ...]] = {"shard": SHARDS, "recompute": RECOMPUTES, "boundary": BOUNDARIES}
MODEL_WIDE = ("pp", "micro_batches")

_HELP = "FORCE is [LAYERS:]key=value,...[;...], for example pp=2,dp=2 or layers.[01]:tp=4;layers.[23]:dp=4"


@dataclass(frozen=True)
class Clause:
    layers: str
    choices: dict[str, Choice]

    def covers(self, layer: str) -> bool:
        return fnmatch.fnmatchcase(layer, self.layers)


@dataclass(frozen=True)
class Force:
    text: str = ""
    clauses: tuple[Clause, ...] = field(default=())

    @property
    def pp(self) -> int | None:
        return self._model_wide("pp")

    @property
    def micro_batches(self) -> int | None:
        return self._model_wide("micro_batches")

    def _model_wide(self, key: str) -> int | None:
        found = [clause.choices[key] for clause in self.clauses if key in clause.choices]
        return int(found[-1]) if found else None

    def for_layer(self, layer: str) -> dict[str, Choice]:
        """What is chosen for one layer: dp, tp, stage, shard, recompute, boundary."""
        chosen: dict[str, Choice] = {}
        for clause in self.clauses:
            if clause.covers(layer):
                chosen |= {key: value for key, value in clause.choices.items() if key not in MODEL_WIDE}
        return chosen

    def check_layers(self, layers: Sequence[str]) -> None:
        """Raises Diagnostic for a glob that meets no layer."""
        for clause in self.clauses:
            if not any(map(clause.covers, layers)):
                near = difflib.get_close_matches(clause.layers, layers, n=1)
                raise Diagnostic(
                    f"{clause.layers!r} in --force matches no layer",
                    notes=["the layers are " + ", ".join(_shorten(layers))],
                    help=f"did you mean {near[0]}?" if near else None,
                )


def admits(choices: Mapping[str, Choice], strategy: Strategy) -> bool:
    """Whether a strategy is what the user chose, as far as anything is chosen.

    The boundary means nothing to a layer that is not split.
    """
    for key in ("dp", "tp", "shard", "recompute", "boundary"):
        if key in choices and getattr(strategy, key) != choices[key] and not (key == "boundary" and strategy.tp == 1):
            return False
    return True


def parse_force(text: str) -> Force:
    """Raises Diagnostic: syntax, an unknown key, a value that the key does not take."""
    clauses = []
    for part in filter(None, (p.strip() for p in text.split(";"))):
        layers, colon, rest = part.rpartition(":")
        choices: dict[str, Choice] = {}
        for pair in rest.split(","):
            key, equals, value = (piece.strip() for piece in pair.partition("="))
            if not equals or not key or not value:
                raise Diagnostic(f"{pair.strip()!r} in --force is not key=value", help=_HELP)
            if key in choices:
                raise Diagnostic(f"{key} is given twice in {part!r} of --force")
            choices[key] = _value(key, value)
            if colon and key in MODEL_WIDE:
                raise Diagnostic(f"{key} in --force holds for the whole model: it cannot be chosen for {layers!r}")
        clauses.append(Clause(layers.strip() if colon else "*", choices))
    return Force(text, tuple(clauses))


def _value(key: str, value: str) -> Choice:
    if key in INTEGERS:
        low = 0 if key == "stage" else 1
        if not re.fullmatch(r"\d{1,9}", value) or int(value) < low:
            raise Diagnostic(f"{key} in --force takes an integer from {low} on, not {value!r}")
        return int(value)
    if key in WORDS:
        if value not in WORDS[key]:
            near = difflib.get_close_matches(value, WORDS[key], n=1)
            raise Diagnostic(
                f"{key} in --force is one of {', '.join(WORDS[key])}, not {value!r}",
                help=f"did you mean {key}={near[0]}?" if near else None,
            )
        return value
    known = (*INTEGERS, *WORDS)
    near = difflib.get_close_matches(key, known, n=1)
    raise Diagnostic(
        f"--force does not know {key!r}: its keys are {', '.join(known)}",
        help=f"did you mean {near[0]}?" if near else None,
    )


def _shorten(layers: Sequence[str], most: int = 8) -> list[str]:
    return list(layers) if len(layers) <= most else [*layers[: most - 2], "...", layers[-1]]


def check_degrees(force: Force, layers: Sequence[str], devices: int, global_batch: int) -> None:
    """Raises Diagnostic, naming the nearest that is possible, for forces that no plan can meet.

    pp must divide the devices and leave no stage empty; in each layer pp * dp * tp must be the number of devices.
    """
    force.check_layers(layers)
    stages = _divisors(devices)
    pp = force.pp
    if pp is not None:
        possible = [d for d in stages if d <= len(layers)]
        if pp not in possible:
            why = f"{devices} devices divide into {_words(stages)} stages"
            if pp in stages:
                why = f"the model has only {len(layers)} layer{'s' * (len(layers) > 1)}, and every stage needs one"
            raise Diagnostic(f"pp={pp} is not possible: {why}", help=f"the nearest is pp={_nearest(pp, possible)}")
    count = force.micro_batches
    if count is not None and global_batch % count:
        near = _nearest(count, _divisors(global_batch))
        raise Diagnostic(
            f"micro_batches={count} does not divide the global batch of {global_batch}",
            help=f"the nearest is micro_batches={near}; or a global batch of {_words(_multiples(global_batch, count))}",
        )
    for layer in layers:
        chosen = force.for_layer(layer)
        _check_layer(layer, chosen, pp, devices, len(layers))
        dp = chosen.get("dp")
        parts = (int(dp) if dp is not None else 1) * (count or 1)
        if global_batch % parts:
            told, sizes = f"dp={dp}" + (f" and micro_batches={count}" if count else ""), _multiples(global_batch, parts)
            raise Diagnostic(
                f"a global batch of {global_batch} does not divide over {told}",
                help=f"the nearest that {'do are' if len(sizes) > 1 else 'does is'} {_words(sizes)}",
            )


def _check_layer(layer: str, chosen: dict[str, Choice], pp: int | None, devices: int, layers: int) -> None:
    dp, tp, stage = (int(v) if (v := chosen.get(k)) is not None else None for k in ("dp", "tp", "stage"))
    options = [
        (d, a, devices // d // a)
        for d in _divisors(devices)
        if d <= layers and (pp is None or d == pp)
        for a in _divisors(devices // d)
    ]
    if not any((dp is None or dp == a) and (tp is None or tp == b) for _, a, b in options):
        named = {"pp": pp, "dp": dp, "tp": tp}
        told = ",".join(f"{key}={value}" for key, value in named.items() if value is not None)
        near = min(options, key=lambda o: _distance(o, (pp, dp, tp)))
        sizes = dict(zip(("pp", "dp", "tp"), near, strict=True))
        raise Diagnostic(
            f"{told} is not possible for layer {layer}: pp * dp * tp must be the {devices} devices of the cluster",
            help="the nearest is " + ",".join(f"{k}={sizes[k]}" for k in sizes if named[k] is not None or sizes[k] > 1),
        )
    if stage is not None and (stage >= (pp or devices) or stage >= layers):
        last = min(pp or devices, layers) - 1
        raise Diagnostic(f"stage={stage} is not possible for layer {layer}: stages count from 0 to {last}",
                         help=f"the nearest is stage={last}")  # fmt: skip


def _distance(option: tuple[int, int, int], wish: Iterable[int | None]) -> tuple[float, ...]:
    """Relative differences; a degree that was asked for and falls to 1 is the worst of equals."""
    pairs = [(a, b) for a, b in zip(option, wish, strict=True) if b is not None]
    lost = sum(a == 1 < b for a, b in pairs)
    return (sum(abs(a - b) / max(a, b) for a, b in pairs), lost, *(-size for size in option))


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _nearest(wish: int, possible: Sequence[int]) -> int:
    return min(possible, key=lambda n: (abs(n - wish), n))


def _multiples(n: int, of: int) -> list[int]:
    """The multiples of `of` right below and above n (n is none)."""
    below = n // of * of
    return [m for m in (below, below + of) if m > 0]


def _words(numbers: Sequence[int]) -> str:
    texts = [str(n) for n in numbers]
    return texts[0] if len(texts) == 1 else ", ".join(texts[:-1]) + " and " + texts[-1]
