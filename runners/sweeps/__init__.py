"""Sweeps: many training runs that differ in chosen options.

**sweep** > **member** > **attempt**. A *sweep* is a folder of members. A *member* is one choice of memory,
size, seed and so on: one ordinary run folder made by `train_agent.py`, and its evaluation. An *attempt* is a
process that trains a member; if it dies, the next one resumes from the member's last checkpoint. *Backends*
decide where attempts run.
"""
