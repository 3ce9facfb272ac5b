"""The installed libraries agree on their own masks: xFormers' classes, and SDPA's flags."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.lowering.cases import CASES, XFORMERS, problem, taken, wanted
from tests.lowering.readings import of_tokens


def test_xformers_own_classes_say_the_same() -> None:
    """The library's own CPU code materialises its biases: where it is installed, it is the independent reading."""
    pytest.importorskip("xformers.ops", reason="xformers is not installed here")
    import torch
    from attnbench_backends._call_xformers import bias_of

    compared = 0
    for name in sorted(XFORMERS):
        for case, (task, arrays) in taken(name):
            if task["bias"] in ("", "Tensor"):
                continue
            bias = bias_of(task["bias"], task["numbers"], torch.device("cpu"))
            if "q_lengths" not in task["numbers"]:
                dense = bias.materialize((case.q_len, case.k_len))
                np.testing.assert_array_equal(
                    np.broadcast_to(dense.exp() > 0.5, wanted(case).shape), wanted(case)
                )
            else:
                q_rows = arrays["q_tokens"][1] if "q_tokens" in arrays else np.arange(case.batch * case.q_len)
                k_rows = arrays["k_tokens"][1] if "k_tokens" in arrays else np.arange(case.batch * case.k_len)
                dense = bias.materialize((len(q_rows), len(k_rows))).exp().numpy() > 0.5
                tokens = np.zeros((case.batch * case.q_len, case.batch * case.k_len), bool)
                tokens[np.ix_(q_rows, k_rows)] = dense
                np.testing.assert_array_equal(of_tokens(case, tokens), wanted(case))
            compared += 1
    assert compared >= 12


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["sdpa_math", "sdpa_flash", "sdpa_efficient", "sdpa_cudnn"])
def test_sdpas_flags_mean_the_mask(name: str, device: str) -> None:
    """scaled_dot_product_attention: is_causal is `torch.ones(L, S).tril(diagonal=0)`; causal_lower_right aligns it at
    the last key (torch.nn.attention.bias); what has no flag goes in as the dense mask itself.
    """
    from attnbench.backend import resolve

    backend: Any = resolve(name)
    forms = set()
    for fields in CASES:
        case = problem(*fields)
        form = backend._causal_form(case, device)
        forms.add(form)
        triangle = np.tril(np.ones((case.q_len, case.k_len), bool), k=0)
        at_the_end = np.tril(np.ones((case.q_len, case.k_len), bool), k=case.k_len - case.q_len)
        read = {"full": np.ones_like(triangle), "is_causal": triangle, "lower_right": at_the_end}
        if form is not None:
            np.testing.assert_array_equal(np.broadcast_to(read[form], wanted(case).shape), wanted(case))
    assert {"full", "is_causal", None} <= forms
