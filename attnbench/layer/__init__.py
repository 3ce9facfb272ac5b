"""Backends inside layers: MultiheadAttention on any backend, and unchanged models rerouted to one."""

from attnbench.layer.cache import KVCache
from attnbench.layer.multihead import MultiheadAttention
from attnbench.layer.reroute import use_backend
from attnbench.layer.router import Routed

__all__ = ["KVCache", "MultiheadAttention", "Routed", "use_backend"]
