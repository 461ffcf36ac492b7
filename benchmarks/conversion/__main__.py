"""The conversions with options: `python -m benchmarks.conversion --rounds 1 --models llama`."""

import argparse

from benchmarks.conversion.checkpoints import FULL, SMALL
from benchmarks.conversion.run import ROUNDS, Plan, print_conversion, write_conversion

if __name__ == "__main__":
    types = dict.fromkeys(scheme for model in FULL.values() for scheme in model.schemes)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--models", nargs="*", choices=list(FULL), default=list(FULL))
    parser.add_argument("--schemes", nargs="*", choices=list(types))
    parser.add_argument(
        "--small", action="store_true", help="twenty million weights; prints, writes nothing"
    )
    parser.add_argument("--print", action="store_true", help="print the tables, write nothing")
    options = parser.parse_args()
    models = SMALL if options.small else FULL
    plan = Plan(
        rounds=options.rounds,
        models={name: models[name] for name in options.models},
        schemes=tuple(options.schemes) if options.schemes else None,
    )
    (print_conversion if options.small or options.print else write_conversion)(plan)
