"""Measurements of memory and of episodes during rollouts. Imports `model` and `distributed`."""
