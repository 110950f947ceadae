"""Backends open the graphs of an engine directory and run them; they know tensors and files, but no model.

Importing this package imports no runtime library: ONNX Runtime or TensorRT is loaded when a backend is made.
"""
