"""With which numbers: the dataclass tree that checks them, the parser that fills it, and the presets."""

from __future__ import annotations

from memory_suite.configs.agent_schema import TrainConfig, from_dict, load
from memory_suite.configs.run_config import to_dict, to_yaml

__all__ = ["TrainConfig", "from_dict", "load", "to_dict", "to_yaml"]
