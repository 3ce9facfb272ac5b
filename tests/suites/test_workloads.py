"""The workloads have the published dimensions of the models that they name, by independent arithmetic."""

from __future__ import annotations

import math
import re
import sys
from importlib.resources import files
from typing import Any

import pytest
from attnbench_suites import document_lengths as lengths_of_text
from attnbench_suites.document_lengths import mask_text

from attnbench.problem import Softcap
from attnbench.sweep.suite import load_suite

DEVICES = ("cpu", "cuda")
WORKLOADS = [
    "Transformer-base encoder",
    "Transformer-base decoder",
    "Transformer-base cross-attention",
    "BERT-base",
    "GPT-2",
    "ViT-B/16",
    "Swin-T",
    "DETR decoder cross-attention",
    "T5-base",
    "BLOOM-7B",
    "Whisper-small",
    "Longformer-base",
    "Mistral-7B",
    "Llama-3-8B prefill",
    "Llama-3-8B decode",
    "Gemma-2-9B",
    "DeepSeek-V3",
    "gpt-oss-20b",
    "packed fine-tuning",
]


@pytest.mark.parametrize("device", DEVICES)
def test_every_model_of_the_workloads_is_there_with_a_source(device: str) -> None:
    plans = load_suite("workloads").cases(device)
    for model in WORKLOADS:
        own = [plan for plan in plans if plan.group.startswith(model)]
        assert own, model
        assert all(plan.source for plan in own), model


def workload(group: str, device: str = "cuda") -> list[Any]:
    return [plan.case for plan in load_suite("workloads").cases(device) if plan.group.startswith(group)]


def test_numbers_of_models_follow_from_their_published_dimensions() -> None:
    # hidden_size / num_attention_heads of the configurations named in the file.
    for group, hidden in (("BERT", 768), ("GPT-2", 768), ("ViT", 768), ("Whisper", 768), ("Longformer", 768)):
        assert {c.q_heads * c.head_dim for c in workload(group)} == {hidden}, group
    for group in ("BLOOM", "Llama-3-8B prefill", "Mistral"):
        assert {c.q_heads * c.head_dim for c in workload(group)} == {4096}, group
    assert {c.q_len for c in workload("ViT")} == {(224 // 16) ** 2 + 1}
    assert {c.k_len for c in workload("DETR")} == {-(-800 // 32) * -(-1333 // 32)}
    assert {c.softmax_scale for c in workload("Gemma")} == {256**-0.5}
    assert {c.scores for c in workload("Gemma")} == {(Softcap(50.0),)}
    assert {c.softmax_scale for c in workload("T5")} == {1.0}
    assert {c.has_empty_rows for c in workload("Transformer-base encoder")} == {False}


def test_deepseeks_scale_is_that_of_its_code_from_the_numbers_of_its_configuration() -> None:
    rope_factor, mscale_all_dim = 40, 1.0
    m = 0.1 * mscale_all_dim * math.log(rope_factor) + 1
    for device in DEVICES:
        (case,) = workload("DeepSeek", device)
        assert (case.head_dim, case.v_dim) == (128 + 64, 128)
        assert case.softmax_scale == pytest.approx(192**-0.5 * m * m, rel=1e-12)


def test_swins_stages_halve_the_picture_and_double_the_width() -> None:
    for device, pictures in (("cpu", 1), ("cuda", 128)):
        stages = workload("Swin-T", device)
        assert [c.q_heads * c.head_dim for c in stages] == [96, 192, 384, 768]
        assert [c.batch * 49 for c in stages] == [pictures * (224 // size) ** 2 for size in (4, 8, 16, 32)]


def test_windows_shrink_with_the_length_so_that_the_same_share_is_attended() -> None:
    for model in ("Longformer-base", "Mistral-7B", "Gemma-2-9B"):
        for small, full in zip(workload(model, "cpu"), workload(model, "cuda"), strict=True):
            shares = [c.pairs / (c.batch * c.q_heads * c.q_len * c.k_len) for c in (small, full)]
            assert shares[0] == pytest.approx(shares[1], rel=0.05), model


def commanded_masks() -> list[tuple[str, str]]:
    """Every command for lengths in workloads.toml, and the mask below it."""
    text = files("attnbench_suites").joinpath("workloads.toml").read_text()
    return re.findall(
        r'^# python -m attnbench_suites\.document_lengths (.*)\nmask = "(.*?)(?: & causal)?"$', text, re.M
    )


def test_lengths_of_the_workloads_are_those_of_the_real_text() -> None:
    found = commanded_masks()
    assert {command.split()[0] for command, _ in found} == {"packed", "cut", "sentences"}
    for command, mask in found:
        kind, *numbers = command.split()
        lengths = [int(number) for number in re.findall(r"\d+", mask)]
        if kind == "packed":
            assert sum(lengths) == int(numbers[0])
        else:
            assert len(lengths) == int(numbers[1])
            assert max(lengths) <= int(numbers[0])
        if sys.version_info[:3] == (3, 11, 7):  # the text changes a little with every release
            assert mask_text(kind, *map(int, numbers)) == mask


def test_every_long_list_of_lengths_has_its_command() -> None:
    plans = [plan for device in DEVICES for plan in load_suite("workloads").cases(device)]
    with_lengths = [plan for plan in plans if plan.case.mask.kinds & {"padding", "documents"}]
    assert len(with_lengths) == len(commanded_masks())


def test_documents_are_packed_whole_until_the_row_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths_of_text, "document_lengths", lambda: [5, 3, 9, 2])
    assert lengths_of_text.packed_lengths(8) == [5, 3]
    assert lengths_of_text.packed_lengths(10) == [5, 3, 2]
    assert lengths_of_text.cut_lengths(4, 3) == [4, 3, 4]
    with pytest.raises(ValueError, match="19 words, not 20"):
        lengths_of_text.packed_lengths(20)


def test_the_text_is_a_real_one_of_a_plausible_size() -> None:
    lengths = lengths_of_text.document_lengths()
    assert len(lengths) > 50
    assert 40_000 < sum(lengths) < 120_000
    assert set(lengths_of_text.sentence_lengths(48, 20)) <= set(range(33, 49))
