"""Runs DVC's stages from Prefect: the graph, a runner process, the outputs, a cache of steps."""
