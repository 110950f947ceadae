"""Backends open the graphs of an engine directory and run them; they know tensors and files, but no model.

Importing this package imports no runtime library: ONNX Runtime or TensorRT is loaded when a backend is made.
"""

from __future__ import annotations

import os

# The Linux wheels of ONNX Runtime 1.31 write an identifier below the home directory when they are imported, and report
# what they do over the network.  Only the environment stops it in time; set it to 0 to allow the reports.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
