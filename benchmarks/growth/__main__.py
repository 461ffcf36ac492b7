"""The growth with options: `python -m benchmarks.growth --series layers tokens`.

Goes on where an interrupted run stopped.
"""

import argparse

from benchmarks.growth.run import print_growth, render_growth, write_growth
from benchmarks.growth.series import FULL, SMALL

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", nargs="*", choices=list(FULL), default=list(FULL))
    parser.add_argument("--again", action="store_true", help="repeat what was measured before")
    parser.add_argument("--small", action="store_true", help="a minute; prints, writes nothing")
    parser.add_argument(
        "--print", action="store_true", help="only write the document anew from growth.json"
    )
    options = parser.parse_args()
    sizes = SMALL if options.small else FULL
    chosen = {name: sizes[name] for name in options.series}
    if options.print:
        render_growth()
    elif options.small:
        print_growth(chosen)
    else:
        write_growth(chosen, again=options.again)
