"""DVC's stages run from Prefect: their graph, a process for each, what they leave, a cache of
steps."""
