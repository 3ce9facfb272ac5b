"""What does a backend do to a layer and a model? MultiheadAttention on any backend, and other people's models."""

from attnbench.layer.cache import KVCache
from attnbench.layer.multihead import MultiheadAttention
from attnbench.layer.reroute import Routed, use_backend

__all__ = ["KVCache", "MultiheadAttention", "Routed", "use_backend"]
