"""Where a plan runs. `cpu` binds compiled drivers; `reference` interprets a graph with the operators' own NumPy."""
