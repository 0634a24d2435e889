"""With which numbers: the dataclass tree that checks them, the parser that fills it, and the presets."""

from __future__ import annotations

from configs.schema import TrainConfig, from_dict, load, save_yaml, to_dict

__all__ = ["TrainConfig", "from_dict", "load", "save_yaml", "to_dict"]
