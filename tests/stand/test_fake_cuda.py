"""The fake device refuses what a real one refuses; the judge and the oracle work on it."""

from __future__ import annotations

from tests.stand.machine import on_fake_cuda

HEAD = "import torch; here, there = torch.ones(4, 4), torch.ones(4, 4, device='cuda'); "


REFUSED = {
    "here + there": "on the same device",
    "here @ there": "on the same device",
    "torch.where(here > 0, there, there)": "on the same device",
    "there.__setitem__(0, here[0])": "on the same device",
    "there + torch.ones(4, 4, device='cuda:1')": "on the same device",
    "there.numpy()": "can't convert cuda",
    "torch.randn(4, device='cuda', generator=torch.Generator())": "Expected a 'cuda' device type for generator",
    "torch.cuda.set_per_process_memory_fraction(0.5, 'cuda')": "with a specified index",
    "torch.cuda.get_device_properties('cuda:2')": "invalid device ordinal",
}
SAY = """
for text in sys.argv[1:]:
    try:
        eval(text)
    except (RuntimeError, TypeError, ValueError) as error:
        print(str(error).splitlines()[0])
    else:
        print("nothing raised")
"""


def test_devices_are_never_mixed() -> None:
    done = on_fake_cuda("-c", "import sys\n" + HEAD + SAY, *REFUSED)
    told = dict(zip(REFUSED, done.stdout.splitlines(), strict=True))
    assert [text for text, words in REFUSED.items() if words not in told[text]] == [], told


def test_what_a_gpu_allows_is_allowed() -> None:
    program = HEAD + (
        "assert there.device == torch.device('cuda:0') and there.is_cuda; "
        "assert (there.cpu() + here).sum() == 32; assert (there * torch.tensor(2.0)).cpu().sum() == 32; "
        "x = here.to('cuda').requires_grad_(); y = (x @ x).sum(); (g,) = torch.autograd.grad(y, x); "
        "assert g.is_cuda and float(g[0, 0]) == 8.0; there.copy_(here); assert there[torch.tensor([1])].is_cuda; "
        "a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2)); "
        "a.record(); there @ there; b.record(); assert a.elapsed_time(b) > 0; "
        "torch.cuda.set_device('cuda:1'); a.record(); there @ there; b.record(); assert a.elapsed_time(b) == 0"
    )
    done = on_fake_cuda("-c", program)
    assert done.returncode == 0, done.stderr


def test_a_check_passes_on_the_fake_device() -> None:
    program = (
        "import attnbench as ab; from attnbench.problem import Case, Causal; "
        "case = Case(q_len=33, k_len=40, q_heads=4, kv_heads=2, head_dim=16, dtype='bf16', mask=Causal(), "
        "direction='fwd_bwd', scores=(ab.ALiBi(), ab.Softcap(20.0), ab.Bias('hqk'))); "
        "import sys; from attnbench.conformance import check; "
        "report = check('naive', device='cuda:1', case=case); print(report); sys.exit(not report.ok)"
    )
    done = on_fake_cuda("-c", program)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "right" in done.stdout
    assert "cuda:1" in done.stdout


def test_the_oracle_computes_more_at_once_on_a_gpu_and_answers_the_same() -> None:
    program = """
import torch
from attnbench.judge import reference, sampling, scores
from attnbench.judge.scores import Problem
from attnbench.problem import Case, Causal, make_inputs
case = Case(q_len=97, k_len=97, q_heads=2, head_dim=16, dtype="bf16", mask=Causal(), direction="fwd_bwd")
for most in (sampling.PAIR_RUNS, sampling.FULL_PASS_PAIRS):
    most["cuda"] = most["cpu"]  # the same rows and columns
reference.RUNS_AT_ONCE = 1 << 14  # so that it takes many pieces
answers, pieces = [], []
for device in ("cpu", "cuda"):
    inputs = make_inputs(case, device=device)
    problem = Problem(inputs)
    pieces.append(sum(1 for _ in problem.pieces(problem.whole(), 1 << 9)))
    answers.append(reference.make_reference(inputs).expected)
assert pieces[0] >= scores.AT_ONCE["cuda"] / 2 * pieces[1], pieces
assert set(answers[0]) == set(answers[1]) == {"out", "lse", "dq", "dk", "dv"}
for name, one in answers[0].items():
    other = answers[1][name]
    value, again = (torch.as_tensor(x.value).cpu() for x in (one, other))
    assert torch.allclose(value, again, rtol=1e-9, atol=1e-12, equal_nan=True), name
    ratio = torch.as_tensor(other.sigma).cpu().mean() / torch.as_tensor(one.sigma).cpu().mean()
    assert 0.9 < ratio < 1.1, (name, ratio)
"""
    done = on_fake_cuda("-c", program)
    assert done.returncode == 0, done.stderr
