"""The solver: a layer-level problem in, the best plan and its proof out. Uses numpy, networkx and python-mip only.

    from uniap_compiler.solver import Problem, solve
    result = solve(Problem.load("gpt26-n8.json"))
    result.status, result.best.objective, result.bound          # "optimal", 1.66958..., 1.66958...

`python -m uniap_compiler.solver PROBLEM.json` does the same from a shell. The mathematics is in docs/solver.md.
"""

from uniap_compiler.solver.evaluate import enumerate_plans, evaluate
from uniap_compiler.solver.graph import Order, linearise
from uniap_compiler.solver.plan import Plan, Result
from uniap_compiler.solver.problem import Candidate, Fixed, Problem, ProblemError, Value
from uniap_compiler.solver.uop import solve

__all__ = [
    "Candidate",
    "Fixed",
    "Order",
    "Plan",
    "Problem",
    "ProblemError",
    "Result",
    "Value",
    "enumerate_plans",
    "evaluate",
    "linearise",
    "solve",
]
