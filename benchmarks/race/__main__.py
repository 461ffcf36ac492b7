"""The race with options: `python -m benchmarks.race --rounds 1 --threads 1 --sequences 16`."""

import argparse

from benchmarks.race.entrants import RACES
from benchmarks.race.run import SMALL, Plan, print_race, write_race

if __name__ == "__main__":
    default = Plan()
    labels = dict.fromkeys(entrant.label for race in RACES.values() for entrant in race.entrants)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=default.rounds)
    parser.add_argument("--threads", type=int, nargs="*", default=default.threads)
    parser.add_argument("--sequences", type=int, nargs="*", help="in the place of each race's own")
    parser.add_argument("--entrants", nargs="*", choices=list(labels))
    parser.add_argument("--small", action="store_true", help="two layers; prints, writes nothing")
    parser.add_argument("--print", action="store_true", help="print the tables, write nothing")
    options = parser.parse_args()
    if options.small:
        print_race(SMALL)
    else:
        plan = Plan(
            rounds=options.rounds,
            threads=tuple(options.threads),
            sequences=tuple(options.sequences) if options.sequences else None,
            labels=tuple(options.entrants) if options.entrants else None,
        )
        (print_race if options.print else write_race)(plan)
