"""The actor-critic policy and the encoders of observations. Imports `model`."""
