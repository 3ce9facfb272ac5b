"""What each contract besides flash rests on: a hypothesis, the inputs it does not cover, and its trace in out's error.

`dense` rests on scores that are rounded to the dtype, whose effect on out is computed and looked for; `flash_splits` on
weights taken from a float32 LSE, which make a row of out too large or too small as a whole. A delta or a row sum in few
bits leaves neither, however well it fits into the noise of `dense`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from attnbench.judge.oracle import log_sum_exp, probabilities
from attnbench.judge.reference import Reference
from attnbench.judge.rounding import U32, finite
from attnbench.judge.scores import Part, Problem, full_precision, take
from attnbench.problem import Case
from attnbench.problem.inputs import Inputs, torch_dtype
from attnbench.problem.scores import Softcap

HYPOTHESES = {
    "flash_splits": "P is taken from the LSE in the forward",
    "dense": "scores are rounded to {dtype}",
}
MOST_SCORES = 1 << 20  # in which a trace is looked for; the first of the judged rows
SURE = 5.0  # standard errors by which a slope is told from 1/2
FEWEST_ROWS = 8  # that differ, weighed by the effect that is looked for in them
OF_THE_ERROR = 0.5  # the share of out's squared error that a hypothesis has to reproduce


def is_beyond(contract: str, case: Case, distribution: str) -> bool:
    """Whether a contract's noise does not cover the case on these inputs, so that it is not judged by it."""
    if contract != "dense":
        return False
    # DENSE may round q k^T before it is scaled, which overflows in fp16.
    if distribution == "huge_negative" and case.dtype == "fp16":
        return True
    # DENSE rounds dP, which is nearly one number along a row here: the errors agree from key to key, and the
    # rounding model takes them as independent.
    if distribution == "cancelling_dq":
        return True
    # Rounding scores to bf16 moves them by more than 1, and so sometimes decides which key wins a row. That is rarer
    # than the draws of the noise can show.
    is_larger = case.scale is not None and case.scale * case.head_dim**0.5 > 1
    return case.dtype == "bf16" and distribution == "large" and is_larger


def explains(contract: str, inputs: Inputs, reference: Reference, out: Tensor) -> bool | None:
    """Whether the hypothesis of a contract reproduces out's error; None if it shows neither that nor the contrary.

    `reference` is that of the contract which rejects the answer; its noise weighs the error.
    """
    rows = _Rows(inputs, reference, out)
    if contract == "flash_splits":
        return rows.is_scaled_as_a_whole()
    told = [rows.is_moved_like(rows.of(scores)) for scores in rows.rounded_scores()]
    if True in told:
        return True
    # Score changes can be rounded in more orders than are tried.
    return None if inputs.case.scores or None in told else False


class _Rows:
    """Some judged rows of out: their error, its noise, and what rounded scores would make of them."""

    def __init__(self, inputs: Inputs, reference: Reference, out: Tensor) -> None:
        self.case, self.problem = inputs.case, Problem(inputs)
        expected = reference.expected["out"]
        b, h, r = (torch.from_numpy(index).to(self.problem.device) for index in expected.at)
        # Enough rows of every head of some batch rows.
        b = b[: max(1, MOST_SCORES // (len(h) * len(r) * self.case.k_len))]
        r = r[: max(1, MOST_SCORES // (len(b) * len(h) * self.case.k_len))]
        self.part = Part(b, torch.unique(h // self.case.group), r, self.problem.whole().columns)
        self.sigma = torch.from_numpy(expected.sigma).to(self.problem.device)[: len(b), :, : len(r)]
        with full_precision():
            self.block = self.problem.block(self.part)
            self.row_max, self.lse = log_sum_exp(self.block.s, self.problem.sink_logits(self.part))
            self.exact = self.of(self.block.s)  # [B, H, R, Dv]
        self.error = take(out.detach(), b, h, r).double() - self.exact

    def of(self, s: Tensor) -> Tensor:
        """out of other masked scores [B, H, R, K]."""
        with full_precision():
            _, lse = log_sum_exp(s, self.problem.sink_logits(self.part))
            return self.problem.by_key_head(probabilities(s, lse), self.problem.v(self.part))

    def rounded_scores(self) -> Iterator[Tensor]:
        """The scores with every step rounded to the dtype, for each place that the scale may have."""
        problem, scale, dtype = self.problem, self.problem.scale, torch_dtype(self.case.dtype)
        rounded = lambda x: x.to(dtype).double()  # noqa: E731
        with full_precision():
            q, k = problem.q(self.part), problem.k(self.part).transpose(-1, -2)
            root = abs(scale) ** 0.5
            product = problem.by_key_head
            of_product: tuple[Callable[[], Tensor], ...] = (
                lambda: rounded(product(q, k)) * scale,
                lambda: product(rounded(q * scale), k),
                lambda: product(q, rounded(k * scale)),
                lambda: (
                    product(rounded(q * (scale / root)), rounded(k * root)) if root else product(q, k) * 0
                ),
                lambda: product(q, k) * scale,
            )
            for make in of_product:
                s = rounded(make())
                if isinstance(problem.softcap, Softcap):
                    cap = problem.softcap.cap
                    s = rounded(rounded(torch.tanh(rounded(s / cap))) * cap)
                for term in problem.added(self.part):
                    s = rounded(s + rounded(term))
                yield s.masked_fill(~self.block.allowed, -torch.inf)

    def is_moved_like(self, other: Tensor) -> bool | None:
        """Whether out is moved as the other out is: it has most of the error, and the slope on it is near 1, not 0.

        Errors of a row may agree, so the slope's standard error counts each row once; few rows have none.
        """
        predicted = (other - self.exact) / self.sigma
        error = self.error / self.sigma
        usable = predicted.isfinite() & error.isfinite()
        predicted, error = torch.where(usable, predicted, 0.0), torch.where(usable, error, 0.0)
        of_rows = predicted.square().sum(-1)
        size = of_rows.sum()
        if not float(size) > 0 or float(size**2 / of_rows.square().sum()) < FEWEST_ROWS:
            return None
        slope = float((error * predicted).sum() / size)
        left = error - slope * predicted
        uncertain = SURE * float((left * predicted).sum(-1).square().sum().sqrt() / size)
        if slope - uncertain > 0.5 and slope + uncertain < 1.5:
            share = 1 - float((error - predicted).square().sum() / error.square().sum())
            return True if share > OF_THE_ERROR else None
        return False if slope + uncertain < 0.5 or slope - uncertain > 1.5 else None

    def is_scaled_as_a_whole(self) -> bool | None:
        """Whether most of out's error is a factor of each row, and no larger than a float32 LSE is off."""
        if self.case.v_dim < 8 or self.lse.numel() < FEWEST_ROWS:
            return None  # any error of few features is nearly a factor
        size = self.exact.square().sum(-1, keepdim=True)
        factor = (self.error * self.exact).sum(-1, keepdim=True) / size.clamp_min(1e-300)  # [B, H, R, 1]
        whole, left = factor * self.exact / self.sigma, (self.error - factor * self.exact) / self.sigma
        of_lse = 4 * U32 * (finite(self.lse).abs() + finite(self.row_max).abs() + 1)
        # Rows without a key have no noise to divide by.
        whole, left = (torch.where(x.isfinite(), x, 0.0) for x in (whole, left))
        # Rows within their noise, such as weights that underflow beside a sink, may have any factor.
        is_off = whole.square().mean(-1) > 1
        is_small = bool((factor.abs()[..., 0] <= of_lse)[is_off].all())
        share = float(whole.square().sum() / (whole.square().sum() + left.square().sum()).clamp_min(1e-300))
        return is_small and share > OF_THE_ERROR
