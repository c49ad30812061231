"""`python -m loadspan`."""

from loadspan.commands import main

if __name__ == "__main__":
    raise SystemExit(main())
