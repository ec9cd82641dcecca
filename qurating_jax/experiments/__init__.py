"""Experiments: files of stages, their graph, its runs, its cost and its comparison."""
