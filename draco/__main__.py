"""`python -m draco`: the command line of `draco.cli`."""

import os
import sys

# `python -m` looks into the working folder first, where a random.py is not Python's: unless draco itself is there.
if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()] != [os.path.dirname(os.path.dirname(__file__))]:
    del sys.path[0]

from draco.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
