"""The HTTP application: photos in, predictions out, and the pages that people look at.

It needs the extra `serve` (FastAPI, uvicorn, python-multipart, prometheus-client) and knows no
model registry. `visage.server.run` serves a released model or a folder; `model_registry.serve`
serves the registered champion with the same application.
"""
