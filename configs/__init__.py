"""Configuration: dataclasses with every option, the parser that fills and checks them, and presets.

`ranges` < `command_line` < `run_config` < `agent_schema`, `sequence_schema`. Nothing else of the suite is
imported.
"""

from __future__ import annotations

from memory_suite.configs.agent_schema import TrainConfig, from_dict, load
from memory_suite.configs.run_config import to_dict, to_yaml

__all__ = ["TrainConfig", "from_dict", "load", "to_dict", "to_yaml"]
