"""Networks from ONNX files: importer.py has the steps in order, and the other files translate the operators."""

from __future__ import annotations

from prefiqs_ext.models.onnx_import.importer import ImportedNetwork, import_onnx, read_onnx

__all__ = ["ImportedNetwork", "import_onnx", "read_onnx"]
