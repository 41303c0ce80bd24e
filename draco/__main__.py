"""`python -m draco`: the command line of `draco.cli`."""

import sys

from draco.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
