"""ONNX models to `evort.graph.Model`: every opset from 7 on, each operator rewritten to its newest form.

source.py     reads the file; tensors as NumPy arrays, external data mapped
importer.py   walks graphs, nested graphs and functions
builder.py    what rewriting rules see: emit nodes, make constants, ask for dtypes and ranks
canonical.py  the table of rewriting rules, with those that turn attributes into inputs
canonical_*.py  the longer rules
"""

from evort_tools.importer.importer import import_model
from evort_tools.importer.source import Source, read

__all__ = ["Source", "import_model", "read"]
