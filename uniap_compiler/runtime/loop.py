"""One training step on one rank: walks the schedule table of a stage with a store keyed by role strings.

    SCHEDULE = [["recv", "h", 0], ["forward", 0], ["recv_grad", ...], ["backward", 0], ["send_grad", "h", 0]]

The format of the generated modules (ARGS, RESULTS, TRANSFERS, PARAMETERS, SCHEDULE, ...) is in docs/bundle.md.
"""
