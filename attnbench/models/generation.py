"""The suite `generation`: decoding with a KV cache must give the logits of full attention, on every backend.

The reference is the same decoder in float64 over the whole text at once, with the spread that float32's roundings
give it. At a position whose logits exceed that spread, the backend, its mask or the cache is wrong.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from attnbench.errors import AttnbenchError
from attnbench.judge.verdict import MAX_Z
from attnbench.layer.attend import attend_with, backend_name, forget
from attnbench.measure.fingerprint import fingerprint
from attnbench.models import texts
from attnbench.models.record import ModelRun, TooSlow, finite
from attnbench.models.rounding import Spread, exact_attention, spread
from attnbench.models.suite import SURVIVED, chosen_tasks, default_backends, failed
from attnbench.models.transformer import Decoder, Shape
from attnbench.problem import Causal, Mask, Padding, SlidingWindow

SUITE = "generation"
DECODED_DTYPES = ("fp32",)
CAUSAL = Causal()
DECODE_LIMIT_S = 10.0  # per backend and text
PROMPT, STEPS, ROWS = 24, {"cpu": 24, "cuda": 128}, 3


@dataclass(frozen=True)
class Form:
    """One way of decoding: the heads, the mask, and the number of left padding tokens of each row."""

    name: str
    kv_heads: int | None = None
    mask: Mask = CAUSAL
    pads: tuple[int, ...] = ()

    def model(self, backend: Any, seed: int) -> Decoder:
        """The untrained decoder from a seed, whose attention is spread widest."""
        torch.manual_seed(seed)
        return Decoder(Shape(texts.VOCABULARY, kv_heads=self.kv_heads), backend, self.mask)

    def padding(self, length: int) -> Mask | None:
        """The mask of real keys among `length` tokens."""
        return Padding([length - pad for pad in self.pads], "left") if self.pads else None

    def real(self, logits: Tensor) -> Tensor:
        """Logits [B, S, V] with those of padding tokens, which are meaningless, set to zero."""
        if not self.pads:
            return logits
        positions = torch.arange(logits.shape[1], device=logits.device)
        kept = positions[None] >= torch.tensor(self.pads, device=logits.device)[:, None]
        return torch.where(kept[..., None], logits, 0.0)


FORMS = (
    Form("causal"),
    Form("grouped", kv_heads=1),
    Form("window", mask=Causal() & SlidingWindow(11, 0)),
    Form("padded", pads=(0, 7, 16)),
)


def decode(
    model: Decoder,
    tokens: Tensor,
    padding: Callable[[int], Mask | None],
    prompt: int,
    limit_s: float = math.inf,
) -> tuple[Tensor, list[float]]:
    """Logits [B, S, V] from a prefill of `prompt` tokens and one call per further token, and milliseconds per call."""
    caches, logits, spent_ms = model.new_caches(), [], []
    with torch.no_grad():
        for start, end in [(0, prompt), *((n, n + 1) for n in range(prompt, tokens.shape[1]))]:
            start_ns = time.perf_counter_ns()
            logits.append(model(tokens[:, start:end], caches=caches, padding=padding(end)))
            if tokens.is_cuda:
                torch.cuda.synchronize(tokens.device)
            spent_ms.append((time.perf_counter_ns() - start_ns) / 1e6)
            if sum(spent_ms) > 1e3 * limit_s:
                raise TooSlow(
                    f"{end} of {tokens.shape[1]} tokens in {sum(spent_ms) / 1e3:.0f} s; the limit is {limit_s:.0f} s; "
                    "does it compile every length anew?"
                )
    return torch.cat(logits, dim=1), spent_ms


def by_position(budget: Spread, logits: Tensor) -> list[float]:
    """The error of the logits [B, S, V] at each position, in units of what is allowed."""
    z = (logits.double() - budget.value).abs() / budget.sigma.clamp_min(torch.finfo(torch.float64).tiny)
    over = z.nan_to_num(nan=math.inf).amax(dim=(0, 2)) / MAX_Z["dense"]
    return [float(x) for x in over]


def run(
    backends: list[Any] | None,
    *,
    device: str = "cpu",
    seed: int = 0,
    steps: int | None = None,
    tasks: Iterable[str] | None = None,
    done: Iterable[ModelRun] = (),
    dtypes: Iterable[str] = DECODED_DTYPES,
    limit_s: float = DECODE_LIMIT_S,
) -> Iterator[ModelRun]:
    """Every form on every backend, each as soon as it is done; those in `done` are neither run nor yielded again."""
    if tuple(dtypes) != DECODED_DTYPES:
        raise AttnbenchError(f"{SUITE} decodes in fp32 only; drop --dtype")
    steps = STEPS[device.split(":")[0]] if steps is None else steps
    chosen = chosen_tasks(SUITE, [form.name for form in FORMS], tasks)
    forms = [form for form in FORMS if form.name in chosen]
    done_keys = {run.key for run in done}
    names = default_backends(device) if backends is None else backends
    machine = fingerprint(device)["machine"]
    for form in forms:
        length = PROMPT + steps
        text = texts.prose()
        rows = [text[n * 1000 : n * 1000 + length] for n in range(ROWS)]
        tokens = texts.encoded(rows, length)[0].to(device)
        budget: Spread | None = None
        for backend in names:
            started = datetime.now(UTC).isoformat(timespec="seconds")
            record = ModelRun(
                suite=SUITE,
                task=form.name,
                role="backend",
                backend=backend_name(backend),
                seed=seed,
                steps=steps,
                device=device,
                machine=machine,
                started_at=started,
            )
            if record.key in done_keys:
                continue
            budget = _budget(form, seed, tokens) if budget is None else budget
            yield _on_backend(form, backend, record, tokens, budget, limit_s)
        forget()


def _budget(form: Form, seed: int, tokens: Tensor) -> Spread:
    """The logits of the whole text at once in float64, and the effect of float32's roundings on them."""
    double = form.model(exact_attention, seed).to(device=tokens.device, dtype=torch.float64)

    def program() -> dict[str, Tensor]:
        with torch.no_grad():
            return {"logits": form.real(double(tokens, padding=form.padding(tokens.shape[1])))}

    return spread(program, "fp32")["logits"]


def _on_backend(
    form: Form, backend: Any, record: ModelRun, tokens: Tensor, budget: Spread, limit_s: float
) -> ModelRun:
    try:
        attend_with(backend)
        model = form.model(backend, record.seed).to(tokens.device)
        decoded, spent_ms = decode(model, tokens, form.padding, PROMPT, limit_s)
        with torch.no_grad():
            whole = model(tokens, padding=form.padding(tokens.shape[1]))
    except (TooSlow, AttnbenchError, *SURVIVED) as error:
        return failed(record, error)
    of_decoding = by_position(budget, form.real(decoded))
    of_whole = by_position(budget, form.real(whole))
    largest = max(of_decoding)
    worst = of_decoding.index(largest)
    reason = ""
    if largest > 1:
        first = next(n for n, x in enumerate(of_decoding) if x > 1)
        reason = f"logits at position {worst} are off by {largest:.3g} times what rounding allows; first at {first}"
        if max(of_whole) <= 1:
            reason += "; without the cache they are right"
    figures = {"prefill_ms": spent_ms[0], "token_ms": statistics.median(spent_ms[1:])}
    return replace(
        record,
        status="wrong" if reason else "ok",
        reason=reason,
        figures=figures,
        curves={"over_budget": finite(of_decoding), "whole_over_budget": finite(of_whole)},
        over_budget=largest if math.isfinite(largest) else None,
        deviation={
            "curve": "logits",
            "step": worst,
            "whole": max(of_whole) if math.isfinite(max(of_whole)) else None,
        },
    )
