"""Training and evaluation of the memory transformer on streams of tokens."""
