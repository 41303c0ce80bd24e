"""A run in its directory: its files, its events, and the machine it ran on."""
