"""A jaxpr read as tables: which discretes each value reads, and the value for each of their states."""

# The readings of primitives register themselves.
from marginalia.lanes import calls, indexing, loops, products, scatter, structure  # noqa: F401
