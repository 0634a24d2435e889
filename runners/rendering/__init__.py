"""Pictures, videos and pages of recorded episodes. Imports `plotting` and `run`."""
