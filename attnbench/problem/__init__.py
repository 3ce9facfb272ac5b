"""The problem: masks, score changes, cases, and their inputs."""

from attnbench.problem.blockmap import EMPTY, FULL, PARTIAL, BlockLists, BlockMap, BlockRuns
from attnbench.problem.case import Case
from attnbench.problem.grammar import (
    MASK_KINDS,
    example_of,
    parse_call,
    parse_mask,
    split_outside_brackets,
)
from attnbench.problem.inputs import Inputs, bound_scores, make_inputs, torch_dtype
from attnbench.problem.lengths import Documents, Padding
from attnbench.problem.masks import And, Extent, Mask, Not, Or
from attnbench.problem.primitives import Causal, Dilated, Full, GlobalTokens, PrefixLM, SlidingWindow
from attnbench.problem.scores import (
    ALiBi,
    Bias,
    RelativeBias,
    Score,
    Sink,
    Softcap,
    alibi_slopes,
    canonical,
    parse_score,
)
from attnbench.problem.tables import BlockSparse, Explicit

__all__ = [
    "EMPTY",
    "FULL",
    "MASK_KINDS",
    "PARTIAL",
    "ALiBi",
    "And",
    "Bias",
    "BlockLists",
    "BlockMap",
    "BlockRuns",
    "BlockSparse",
    "Case",
    "Causal",
    "Dilated",
    "Documents",
    "Explicit",
    "Extent",
    "Full",
    "GlobalTokens",
    "Inputs",
    "Mask",
    "Not",
    "Or",
    "Padding",
    "PrefixLM",
    "RelativeBias",
    "Score",
    "Sink",
    "SlidingWindow",
    "Softcap",
    "alibi_slopes",
    "bound_scores",
    "canonical",
    "example_of",
    "make_inputs",
    "parse_call",
    "parse_mask",
    "parse_score",
    "split_outside_brackets",
    "torch_dtype",
]
