"""`python -m tightfit`."""

from tightfit.cli.main import main

if __name__ == "__main__":
    main()
