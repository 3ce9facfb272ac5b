"""Tiles [rows, D] of any D, as kernels hold and multiply them: tuples of column chunks, each a power of two wide.

Triton's tensors must be that wide: one chunk of width D0, or two of D0 and D1 (192 = 128 + 64, where padding to 256
would waste a quarter of the products). `chunks` chooses. Columns past D are read as 0, which adds nothing to a product,
and are never written.
"""

import triton
import triton.language as tl

SMALLEST_DOT = 16  # tl.dot takes no dimension below 16


def chunks(dim: int) -> tuple[int, int]:
    """The widths (D0, D1) that hold `dim` columns; D1 is 0 if one chunk wastes less than a second one saves.

    >>> [chunks(d) for d in (16, 40, 64, 72, 80, 96, 128, 192, 224, 256)]
    [(16, 0), (32, 16), (64, 0), (64, 16), (64, 16), (64, 32), (128, 0), (128, 64), (256, 0), (256, 0)]
    """
    whole = max(SMALLEST_DOT, triton.next_power_of_2(dim))
    first = whole // 2
    rest = max(SMALLEST_DOT, triton.next_power_of_2(dim - first))
    return (first, rest) if first >= SMALLEST_DOT and first + rest < whole else (whole, 0)


@triton.jit
def load_chunk(
    X, b, h, start, limit, strides,
    D: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, CHECK: tl.constexpr,
):  # fmt: skip
    """Columns FIRST .. FIRST + WIDTH of rows start .. start + ROWS of X[b, h]."""
    # Up to the tile's first row offsets take 64 bits (tensors beyond 2^31 elements); within a tile 32 do.
    base = X + tl.cast(b, tl.int64) * strides[0] + tl.cast(h, tl.int64) * strides[1]
    base += tl.cast(start, tl.int64) * strides[2]
    r = tl.arange(0, ROWS)[:, None]
    c = FIRST + tl.arange(0, WIDTH)[None, :]
    at = base + r * strides[2] + c * strides[3]
    if CHECK:
        return tl.load(at, mask=(start + r < limit) & (c < D), other=0.0)
    elif FIRST + WIDTH > D:
        return tl.load(at, mask=c < D, other=0.0)
    else:
        return tl.load(at)


@triton.jit
def load_tile(
    X, b, h, start, limit, strides,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, ROWS: tl.constexpr, CHECK: tl.constexpr,
):  # fmt: skip
    """Rows start .. start + ROWS of X[b, h] as a tile; with CHECK, rows from `limit` on are read as 0.

    X is a pointer, or a descriptor of [B, H, S, D] whose tiles the copy engine of Hopper and later fetches (TMA): it
    needs no address per thread, and reads 0 outside.
    """
    if isinstance(X, tl.tensor_descriptor):
        return (X.load([b, h, start, 0]).reshape([ROWS, D0]),)
    elif D1 == 0:
        return (load_chunk(X, b, h, start, limit, strides, D, 0, D0, ROWS, CHECK),)
    else:
        return (
            load_chunk(X, b, h, start, limit, strides, D, 0, D0, ROWS, CHECK),
            load_chunk(X, b, h, start, limit, strides, D, D0, D1, ROWS, CHECK),
        )


@triton.jit
def store_tile(
    tile, factor, X, b, h, start, limit, strides,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write factor * tile to rows start .. start + ROWS of X[b, h], none from `limit` on."""
    base = X + tl.cast(b, tl.int64) * strides[0] + tl.cast(h, tl.int64) * strides[1]
    base += tl.cast(start, tl.int64) * strides[2]
    r = tl.arange(0, ROWS)[:, None]
    c = tl.arange(0, D0)[None, :]
    rows = base + r * strides[2]
    inside = start + r < limit
    kind = base.dtype.element_ty
    tl.store(rows + c * strides[3], (tile[0] * factor).to(kind), mask=inside & (c < D))
    if D1 != 0:
        c1 = D0 + tl.arange(0, D1)[None, :]
        tl.store(rows + c1 * strides[3], (tile[1] * factor).to(kind), mask=inside & (c1 < D))


@triton.jit
def zero_tile(ROWS: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    """A tile of float32 zeros."""
    if D1 == 0:
        return (tl.zeros([ROWS, D0], tl.float32),)
    else:
        return (tl.zeros([ROWS, D0], tl.float32), tl.zeros([ROWS, D1], tl.float32))


@triton.jit
def scale_rows(tile, factor, D1: tl.constexpr):
    """Each row of a tile times its factor [ROWS]."""
    if D1 == 0:
        return (tile[0] * factor[:, None],)
    else:
        return (tile[0] * factor[:, None], tile[1] * factor[:, None])


@triton.jit
def inner_product(x, y, D1: tl.constexpr):
    """x y^T over the columns of two tiles: float32 [rows of x, rows of y], IEEE products if they are float32."""
    s = tl.dot(x[0], tl.trans(y[0]), input_precision="ieee")
    if D1 != 0:
        s = tl.dot(x[1], tl.trans(y[1]), s, input_precision="ieee")
    return s


@triton.jit
def add_product(acc, weights, x, D1: tl.constexpr):
    """acc + weights x: weights [M, N] float32 are rounded to the dtype of x (P and dS: the rounding of FLASH)."""
    w = weights.to(x[0].dtype)
    a0 = tl.dot(w, x[0], acc[0], input_precision="ieee")
    if D1 == 0:
        return (a0,)
    else:
        return (a0, tl.dot(w, x[1], acc[1], input_precision="ieee"))


@triton.jit
def row_sums(x, y, D1: tl.constexpr):
    """The inner product of each row of x with the same row of y, in float32: [ROWS]."""
    total = tl.sum(x[0].to(tl.float32) * y[0].to(tl.float32), 1)
    if D1 != 0:
        total += tl.sum(x[1].to(tl.float32) * y[1].to(tl.float32), 1)
    return total
