"""A model to files that others run: safetensors, ONNX, int8."""
