"""`python -m uniap_compiler.solver PROBLEM.json`: the solver alone, without the rest of the compiler."""

from __future__ import annotations

import argparse
import sys

from uniap_compiler.solver.command import run_command


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m uniap_compiler.solver", description=__doc__)
    parser.add_argument("problem", help="a uniap-problem/1 file")
    parser.add_argument("--backend", choices=("cbc", "highs"), default="cbc")
    parser.add_argument(
        "--time-limit", type=float, default=None, metavar="S", help="seconds; the best plan so far is printed"
    )
    parser.add_argument(
        "--gap", type=float, default=1e-6, metavar="G", help="relative gap at which a plan is called optimal"
    )
    parser.add_argument(
        "--top", type=int, default=1, metavar="K",
        help="how many different plans: the others may take as long as the first one, or 5 s, within the time limit",
    )  # fmt: skip
    parser.add_argument("--write-lp", default=None, metavar="DIR", help="write every MIQP that is solved")
    parser.add_argument("--certify", action="store_true", help="recompute every derived value by independent code")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    options = parser.parse_args()
    return run_command(
        options.problem,
        backend=options.backend,
        time_limit=options.time_limit,
        gap=options.gap,
        top=options.top,
        write_lp=options.write_lp,
        certify=options.certify,
        quiet=options.quiet,
    )


if __name__ == "__main__":
    sys.exit(main())
