"""The transformer with memory. It contains no reinforcement learning.

Order of imports: `store` (what is kept), `retention` (for how long), `attention` (how it is read),
`block_memories`, `layer`, `transformer`, `sequence_model`. Nothing else of `agents` is imported but
`serialization` and `distributed`.

Names of tensors end in one letter per axis: `score_BHT` is indexed by batch row, head and key position. In
the whole package `agents` the letters are these:

    B  rows of the batch: environments, or streams of tokens
    W  steps that a block writes, which are also its queries
    T  key positions: slots of a store, or all memories that a block can attend to; time, where there is no W
    D  model width
    H  heads
    K  size of a head; of what a head reads where that is not projected, the model width
    G  groups of heads that share a span: 1 (all share it) or H
    P  relative positions: the last P steps
    F  pages of a store
    N  any other count, such as the selected queries of a block

A digit is an axis of that size, as in `clock_B1`. A size that belongs to one module only is a word instead.
"""
