"""The program of the JAX environment: jax.nn.dot_product_attention, or flax's layer, compiled for one case.

Run by attnbench's foreign process; imports neither torch nor attnbench. Tensors are [B, S, H, D]. The forward of a
case with a backward is `jax.vjp`'s, compiled: it returns the residuals that the compiled backward takes.
"""

import json
import os
import time
from typing import Any

import numpy as np

FLUSH_BYTES = 256 << 20
KEPT = 16  # compiled cases, so that a case prepared again on other numbers is not compiled again
_COMPILED: dict[str, Any] = {}


def start(device):
    # Before jax is imported: it reads its platforms once.
    os.environ["JAX_PLATFORMS"] = "cpu" if device == "cpu" else "cuda"
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    try:
        jax.devices()
    except RuntimeError as error:
        raise ImportError(f"jax finds no {device} here (attnbench env create jax --cuda): {error}") from error
    return {}


def as_jax(array):
    import jax.numpy as jnp
    import ml_dtypes

    dtype, values = array
    return jnp.asarray(values.view(ml_dtypes.bfloat16) if dtype == "bf16" else values)


def as_bits(value):
    array = np.asarray(value)
    if array.dtype.name == "bfloat16":
        return "bf16", array.view(np.uint16)
    return {"float32": "fp32", "float16": "fp16"}.get(array.dtype.name, array.dtype.name), array


def alibi(slopes, q_len, k_len):
    """`-slope[h] * |p - j|`, float32 [1, H, Q, K]."""
    import jax.numpy as jnp

    p = jnp.arange(q_len)[:, None] + k_len - q_len
    distance = jnp.abs(p - jnp.arange(k_len)[None, :])  # [Q, K]
    return -(jnp.asarray(slopes, jnp.float32)[:, None, None] * distance)[None]


def attention_of(task):
    """The function of q, k, v [B, S, H, D], the tensors of score changes, and the fixed arrays of a case."""
    if task["program"] == "flax":
        return flax_layer(task)
    import jax

    case = task["case"]
    window = task["local_window_size"]
    slopes = task["alibi_slopes"]

    def attend(q, k, v, changes, fixed):
        biases = [alibi(slopes, case["q_len"], case["k_len"])] if slopes else []
        biases += [changes["bias"]] if "bias" in changes else []
        if "relative" in changes:
            table = changes["relative"]
            # Read in float32: the gradient of an entry is a sum over many pairs, in the dtype of the read.
            read = table.astype("float32")[:, fixed["relative_index"]]
            biases += [read.astype(table.dtype)[None]]  # [1, H, Q, K]
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            bias=sum(biases) if biases else None,
            mask=fixed.get("mask"),
            scale=case["scale"],
            is_causal=task["is_causal"],
            key_value_seq_lengths=fixed.get("key_lengths"),
            local_window_size=tuple(window) if window else None,
            implementation=task["implementation"],
        )

    return attend


def flax_layer(task):
    """A MultiHeadDotProductAttention without biases, whose projections are the identity matrix `fixed["eye"]`."""
    import flax.linen as nn

    case = task["case"]
    heads, dim = case["q_heads"], case["head_dim"]
    width = heads * dim

    def attend(q, k, v, changes, fixed):
        eye = fixed["eye"]  # [H * D, H * D]
        layer = nn.MultiHeadDotProductAttention(
            num_heads=heads,
            qkv_features=width,
            out_features=width,
            use_bias=False,
            deterministic=True,
            dtype=eye.dtype,
            param_dtype=eye.dtype,
        )
        into = {"kernel": eye.reshape(width, heads, dim)}
        params = {
            "query": into,
            "key": into,
            "value": into,
            "out": {"kernel": eye.reshape(heads, dim, width)},
        }
        merged = [x.reshape(*x.shape[:2], width) for x in (q, k, v)]  # [B, S, H * D]
        out = layer.apply({"params": params}, *merged, mask=fixed.get("mask"))
        return out.reshape(*out.shape[:2], heads, dim)

    return attend


def prepare(task, arrays, device):
    return Job(task, arrays)


class Job:
    """One case, compiled."""

    def __init__(self, task, arrays):
        import jax

        self.task, self.prepare_ms = task, {}
        self.needs_backward = task["case"]["direction"] == "fwd_bwd"
        start = time.perf_counter()
        self.refill(arrays)
        self.fixed = {n: as_jax(arrays[n]) for n in ("mask", "key_lengths", "relative_index") if n in arrays}
        if task["program"] == "flax":
            self.fixed["eye"] = jax.numpy.eye(
                task["case"]["q_heads"] * task["case"]["head_dim"], dtype=self.leaves[0].dtype
            )
        self.prepare_ms["layout"] = (time.perf_counter() - start) * 1e3
        start = time.perf_counter()
        key = json.dumps(
            [task, [[str(x.dtype), x.shape] for x in jax.tree_util.tree_leaves((self.leaves, self.fixed))]]
        )
        if key not in _COMPILED:
            while len(_COMPILED) >= KEPT:
                _COMPILED.pop(next(iter(_COMPILED)))
            _COMPILED[key] = self._compile(jax)
        self._compiled, self._compiled_back = _COMPILED[key]
        self.prepare_ms["compile"] = (time.perf_counter() - start) * 1e3
        self.kernel = self._what_runs(jax)
        if jax.default_backend() != "cpu":
            self.time, self.clock = self._time_cold, "perf_counter_ns_cold_l2"
        self._block = jax.block_until_ready
        self._tree = jax.tree_util.tree_leaves
        self.out: Any = None
        self.pull_back: Any = None
        self.grads: Any = None

    def _compile(self, jax):
        """The forward and the backward compiled for these shapes; masks and tables are arguments, not constants."""
        attend = attention_of(self.task)
        # float32 means float32: by default XLA multiplies in TF32 on a GPU.
        with jax.default_matmul_precision("highest" if self.task["case"]["dtype"] == "fp32" else None):
            if not self.needs_backward:
                return jax.jit(attend).lower(*self.leaves, self.fixed).compile(), None

            def forward(q, k, v, changes, fixed):
                return jax.vjp(lambda *leaves: attend(*leaves, fixed), q, k, v, changes)

            compiled = jax.jit(forward).lower(*self.leaves, self.fixed).compile()
            # The output stands in for its gradient, which may come later.
            out, pull_back = compiled(*self.leaves, self.fixed)
            return compiled, jax.jit(lambda back, dout: back(dout)).lower(pull_back, out).compile()

    def refill(self, arrays):
        changes = {name: as_jax(arrays[name]) for name in ("bias", "relative") if name in arrays}
        q, k, v = (as_jax(arrays[name]) for name in ("q", "k", "v"))
        self.leaves = (q, k, v, changes)
        self.dout = as_jax(arrays["dout"]) if "dout" in arrays else None

    def forward(self):
        self.out = None  # one output is alive at a time
        if self.needs_backward:
            self.out, self.pull_back = self._compiled(*self.leaves, self.fixed)
            self._block((self.out, self.pull_back))
        else:
            self.out = self._block(self._compiled(*self.leaves, self.fixed))

    def backward(self):
        if self.pull_back is None:
            self.forward()
        self.grads = None
        self.grads = self._block(self._compiled_back(self.pull_back, self.dout))

    def _time_cold(self, direction, samples, calls):
        """One call per sample by the host's clock; before each, a buffer larger than any L2 is written."""
        import jax

        assert calls == 1
        flush = jax.jit(lambda x: x + 1, donate_argnums=0)
        buffer = flush(jax.numpy.zeros(FLUSH_BYTES, jax.numpy.int8))
        if direction == "bwd" and self.pull_back is None:
            self.forward()
        call, samples_ms = (self.forward if direction == "fwd" else self.backward), []
        for _ in range(samples):
            buffer = self._block(flush(buffer))
            start = time.perf_counter_ns()
            call()
            samples_ms.append((time.perf_counter_ns() - start) / 1e6)
        return {"samples_ms": samples_ms, "switches": 0, "host_ms": [], "late": 0}

    def outputs(self):
        return {"out": as_bits(self.out)}

    def gradients(self):
        dq, dk, dv, changes = self.grads
        named = {"dq": dq, "dk": dk, "dv": dv}
        named.update({self.task["gradients"][name]: grad for name, grad in changes.items()})
        return {name: as_bits(grad) for name, grad in named.items()}

    def memory(self):
        """Peaks as XLA planned them (its arena and its outputs); `saved` counts the buffers actually held."""
        planned = self._compiled.memory_analysis()
        sizes = {"fwd_peak": planned.temp_size_in_bytes + planned.output_size_in_bytes}
        if self.needs_backward:
            self.forward()
            inputs = {x.unsafe_buffer_pointer() for x in self._tree((self.leaves, self.fixed))}
            held = {x.unsafe_buffer_pointer(): x.nbytes for x in self._tree((self.out, self.pull_back))}
            sizes["saved"] = sum(size for place, size in held.items() if place not in inputs)
            back = self._compiled_back.memory_analysis()
            sizes["bwd_peak"] = sizes["saved"] + back.temp_size_in_bytes + back.output_size_in_bytes
        return {name: int(size) for name, size in sizes.items()}

    def drop(self):
        self.out = self.pull_back = self.grads = None

    def _what_runs(self, jax):
        platform = jax.default_backend()
        if self.task["program"] == "flax":
            import flax

            return f"flax {flax.__version__} MultiHeadDotProductAttention, identity projections, xla on {platform}"
        text = self._compiled.as_text()
        ran = sorted(
            {
                piece.split('"')[0]
                for piece in text.split('custom_call_target="')[1:]
                if "fmha" in piece.split('"')[0]
            }
        )
        wanted = self.task["implementation"]
        if (wanted == "cudnn") != bool(ran):
            raise RuntimeError(
                "pinned to {}, but the compiled program has {}".format(wanted, ran or "no cuDNN call")
            )
        return "jax.nn.dot_product_attention, %s" % (", ".join(ran) if ran else f"xla on {platform}")
