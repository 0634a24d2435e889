"""The instruction world: find the messages in a flood of text and deliver each at the right moment."""
