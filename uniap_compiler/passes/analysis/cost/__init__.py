"""The cost model: seconds and bytes of ops, layers and strategies, read off the code that is emitted.

docs/cost-model.md has the formulas.
"""
