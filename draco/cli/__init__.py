"""Every command line: `python -m draco COMMAND ...`."""
