"""Training and evaluation of agents. Imports `run`, `plotting` and `rendering`."""
