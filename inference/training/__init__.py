"""Training: one loop of steps, and who calls it.

A step is one pure update of some variables: loss, gradient, optimiser. The eager step calls it; the
compiled one traces it at the ATen level (`inference.graph`), hands the graph to inductor and never
runs the pair's Python again. Before first use it is compared with the eager one on the same noise.

On a CPU, where inductor's graph is kernels, matrix products and triangular solves, one update is
recorded as a list of calls and repeated by a loop of C; on CUDA the launches of many updates are
captured and replayed: a call of the step is then many updates. Elsewhere a few updates are unrolled
into one graph, or one is called.

Randomness. Normals and uniforms are drawn outside the graph by torch's own generators, in the order
of the eager step: with one update a call, one seed is one run, eager or compiled, up to rounding.
With several updates a call all their noise is drawn at once: the numbers then differ from the eager
run's, though not in law. On CUDA the captured graph draws for itself, from torch's generator in the
order of the graph.
"""
