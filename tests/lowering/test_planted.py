"""A wrong request is found: errors are planted in all requests that can hold them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from attnbench.problem import Case, Causal
from tests.lowering.cases import ALL, BACKENDS, FLASH, MATRIX, NESTED, XFORMERS, Lower, taken, wanted
from tests.lowering.readings import Request

# Each plant changes a request where it can, and gives None where there is nothing to change.


def _with_arrays(request: Request, **arrays: Any) -> Request:
    return request[0], request[1] | arrays


def _plus(values: tuple[Any, ...], place: int, by: int) -> tuple[Any, ...]:
    return tuple(v + by if n == place and v not in (-1, None) else v for n, v in enumerate(values))


def longer_window(case: Case, request: Request, lower: Lower, by: int = 1) -> Request | None:
    task = request[0]
    if task.get("window_left", -1) > 0:
        return {**task, "window_left": task["window_left"] + by}, request[1]
    for name in ("window_size", "local_window_size"):
        if task.get(name) and any(v not in (-1, None, 0) for v in task[name]):
            return {**task, name: _plus(task[name], 0, by)}, request[1]
    numbers = task.get("numbers", {})
    key = next((k for k in ("window", "window_left") if k in numbers and numbers[k] > 1), None)
    return None if key is None else ({**task, "numbers": numbers | {key: numbers[key] + by}}, request[1])


def shorter_window(case: Case, request: Request, lower: Lower) -> Request | None:
    return longer_window(case, request, lower, -1)


def swapped_alignment(case: Case, request: Request, lower: Lower) -> Request | None:
    if case.mask not in (Causal(), Causal("top_left")) or case.q_len == case.k_len:
        return None
    other = Causal("top_left") if case.mask == Causal() else Causal()
    try:
        return lower(replace(case, mask=other))
    except NotImplementedError:
        return None


def shifted_cu_seqlens(case: Case, request: Request, lower: Lower) -> Request | None:
    task, arrays = request
    if "cu_seqlens_k" not in arrays or len(arrays["cu_seqlens_k"][1]) < 3:
        return None
    dtype, values = arrays["cu_seqlens_k"]
    moved = values.copy()
    moved[1:-1] = np.minimum(moved[1:-1] + 1, moved[-1])
    if "numbers" in task:
        numbers = task["numbers"]
        lengths = tuple(int(n) for n in np.diff(moved))
        task = task | {"numbers": numbers | {"k_lengths": lengths}}
    else:
        task = task | {"max_seqlens": (case.q_len, case.k_len)}
    return task, arrays | {"cu_seqlens_k": (dtype, moved)}


def inverted(case: Case, request: Request, lower: Lower) -> Request | None:
    if "custom_mask" in request[1]:
        return _with_arrays(request, custom_mask=("bool", ~request[1]["custom_mask"][1]))
    if "mask" not in request[1]:
        return None
    return _with_arrays(request, mask=("bool", ~request[1]["mask"][1]))


def causal_dropped(case: Case, request: Request, lower: Lower) -> Request | None:
    task, arrays = request
    for name in ("causal", "is_causal"):
        if task.get(name):
            return {**task, name: False}, arrays
    if task.get("bias") == "LowerTriangularMask":
        return {**task, "bias": "", "numbers": {}}, arrays
    return None


def lengths_of_row_0(case: Case, request: Request, lower: Lower) -> Request | None:
    if "key_lengths" not in request[1] or case.batch == 1:
        return None
    dtype, lengths = request[1]["key_lengths"]
    return _with_arrays(request, key_lengths=(dtype, np.full_like(lengths, lengths[0])))


def transposed(case: Case, request: Request, lower: Lower) -> Request | None:
    if "custom_mask" in request[1]:
        square = request[1]["custom_mask"][1].reshape(case.batch, case.q_len, case.k_len)
        return _with_arrays(request, custom_mask=("bool", square.swapaxes(1, 2).reshape(-1)))
    if "mask" not in request[1] or case.q_len != case.k_len:
        return None
    return _with_arrays(request, mask=("bool", request[1]["mask"][1].swapaxes(-1, -2)))


PLANTED: dict[Callable[[Case, Request, Lower], Request | None], frozenset[str]] = {
    longer_window: ALL - {"flax_mha"},
    shorter_window: ALL - {"flax_mha"},
    swapped_alignment: ALL,
    shifted_cu_seqlens: FLASH | XFORMERS | NESTED | {"flashinfer"},
    inverted: MATRIX,
    transposed: MATRIX,
    causal_dropped: ALL - {"flax_mha"},
    lengths_of_row_0: frozenset({"jax_xla", "jax_cudnn"}),
}


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_error_is_found(name: str, plant: Any) -> None:
    lower, read = BACKENDS[name]
    changed, noticed = 0, 0
    for case, request in taken(name):
        wrong = plant(case, request, lower)
        if wrong is None:
            continue
        changed += 1
        try:
            noticed += not np.array_equal(read(case, wrong), wanted(case))
        except AssertionError:
            noticed += 1  # the request does not even hold together
    if name not in PLANTED[plant]:
        assert changed == 0, "it can be planted here: name the backend above"
        return
    assert changed > 0, "there is no mask that this could be planted in"
    assert noticed > 0
