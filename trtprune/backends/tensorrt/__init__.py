"""TensorRT and TensorRT for RTX: one API under two import names, served by the same code.

Building: ``profiles`` (pure), ``network`` (ONNX → TensorRT network), ``check`` (the parser's result) and
``building`` (network → engine file).  Importing this package imports neither library.
"""
