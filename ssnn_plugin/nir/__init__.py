"""Networks of neurons that fire at most once as NIR graphs, and back.

Needs the extra `nir`. NIR has no "at most one spike": a neuron becomes an IF (LIF with a leak) node
with a reset potential so low that it stays silent in simulators that honour it, and metadata that
say what is meant. Host models go through their network on spike times, so that one mapping serves all.
For importers that see something else in such a graph, `to_nir(model, reader=...)` writes one that they read
as it is meant (docs/nir.md).
"""

try:
    import nir  # noqa: F401
except ImportError as error:
    raise ImportError("ssnn_plugin.nir needs NIR: pip install 'ssnn-plugin[nir]'") from error

from .reading import from_nir
from .writing import to_nir

__all__ = ["from_nir", "to_nir"]
