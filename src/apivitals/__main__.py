"""`python -m apivitals` is the command `apivitals`."""

import sys

from apivitals.cli import main

if __name__ == "__main__":
    sys.exit(main())
