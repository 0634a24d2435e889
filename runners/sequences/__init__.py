"""Training and judging the memory transformer on streams of tokens."""
