"""Pictures, videos and pages of recorded episodes and of runs. Imports `plotting` and `run`."""
