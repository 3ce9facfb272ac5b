"""The suite `generation` finds a cache or a mask that is wrong while decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.errors import AttnbenchError
from attnbench.models import generation
from attnbench.models.rounding import exact_attention
from attnbench.problem import Causal

RIGHT = ["naive", "per_head", "mask_multiply", "sdpa_math", "sdpa_flash"]


def scale_off(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    return exact_attention(q, k, v, mask=mask, scale=scale * 1.02)


def top_left(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    """Torch's alignment instead of ours: they differ only if q_len != k_len."""
    return exact_attention(q, k, v, mask=Causal("top_left") if mask == Causal() else mask, scale=scale)


def forgets(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    """Drops the first key once the text is longer than 30 tokens, as a cache that is too short does."""
    if k.shape[2] > 30 and q.shape[2] == 1:
        return exact_attention(q, k[:, :, 1:], v[:, :, 1:], mask=mask, scale=scale)
    return exact_attention(q, k, v, mask=mask, scale=scale)


@pytest.fixture(scope="module")
def runs() -> dict[tuple[str, str], Any]:
    torch.set_num_threads(1)
    found = generation.run([*RIGHT, "torch_mha", scale_off, top_left, forgets], steps=12)
    return {(run.task, run.backend): run for run in found}


@pytest.mark.parametrize("form", generation.FORMS, ids=lambda f: f.name)
@pytest.mark.parametrize("backend", RIGHT)
def test_decoding_gives_the_logits_of_full_attention(runs: Any, form: generation.Form, backend: str) -> None:
    run = runs[form.name, backend]
    assert (run.status, run.reason) == ("ok", "")
    assert len(run.curves["over_budget"]) == generation.PROMPT + 12


def test_a_wrong_alignment_is_found_at_the_first_decoded_token_and_only_there(runs: Any) -> None:
    run = runs["causal", "top_left"]
    assert run.status == "wrong"
    assert f"first at {generation.PROMPT}" in run.reason
    assert "without the cache they are right" in run.reason
    assert max(run.curves["over_budget"][: generation.PROMPT]) <= 1


def test_a_cache_that_forgets_is_found_at_the_token_where_it_does(runs: Any) -> None:
    run = runs["causal", "forgets"]
    assert run.status == "wrong"
    assert "first at 30" in run.reason


def test_a_scale_that_is_off_is_wrong_with_and_without_the_cache(runs: Any) -> None:
    run = runs["causal", "scale_off"]
    assert run.status == "wrong"
    assert "without the cache" not in run.reason


def test_what_a_backend_does_not_take_is_refused(runs: Any) -> None:
    assert runs["grouped", "torch_mha"].status == "refused"


def test_running_out_of_time_says_how_far_it_came() -> None:
    run = next(generation.run(["naive"], tasks=["causal"], limit_s=0.0))
    assert run.status == "timeout"
    assert run.reason.startswith(f"{generation.PROMPT} of ")


def test_unknown_forms_and_dtypes_are_refused() -> None:
    with pytest.raises(AttnbenchError, match="causal, grouped, window, padded"):
        list(generation.run(["naive"], tasks=["beam"]))
    with pytest.raises(AttnbenchError, match="fp32 only"):
        list(generation.run(["naive"], dtypes=["bf16"]))
