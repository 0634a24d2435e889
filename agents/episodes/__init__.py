"""Recorded episodes, and interventions on the memories of an agent.

Imports all other packages of `agents`.
"""
