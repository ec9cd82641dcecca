"""The stage runs of a graph: what stands, what is refused, the processes."""
