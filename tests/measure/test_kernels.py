"""A kernel of another family than the declared one is detected by its name in the profile."""

from __future__ import annotations

import pytest

from attnbench.measure.kernels import attention_kernels, family_mismatch, family_of, short

FLASH2 = (
    "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4>, false>(Flash_fwd_params)"
)
FLASH2_BACK = (
    "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Traits<64>, true>(Flash_bwd_params)"
)
CUTLASS = (
    "fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<bfloat16_t>::Params)"
)
FLASH3 = (
    "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<flash::Mainloop>>>()"
)
FLASH4 = "kernel_cutlass_kernel_flash_attncuteflash_fwd_sm90FlashAttentionForwardSm90_object_at_"
CUDNN = "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1_kernel0_0"
COPY = "void at::native::elementwise_kernel<128, 4, at::native::copy_kernel>(int, char*)"


@pytest.mark.parametrize(
    ("kernel", "family"),
    [
        (FLASH2, "flash2"),
        (FLASH2_BACK, "flash2"),
        (CUTLASS, "cutlass"),
        (FLASH3, "flash3"),
        (FLASH4, "flash4"),
        (CUDNN, "cudnn"),
        (COPY, ""),
        ("Memset (Device)", ""),
        ("ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_nn", ""),
    ],
)
def test_a_kernel_belongs_to_its_family(kernel: str, family: str) -> None:
    assert family_of(kernel) == family


def test_the_named_kernel_beside_copies_is_fine() -> None:
    assert family_mismatch([COPY, FLASH2, FLASH2_BACK], "flash2") == ""


@pytest.mark.parametrize("ran", [[CUTLASS], [FLASH2, CUTLASS], [FLASH3], [FLASH4], [CUDNN, COPY]])
def test_another_kernel_is_named_in_the_reason(ran: list[str]) -> None:
    reason = family_mismatch(ran, "flash2")
    assert reason.startswith("pinned to flash2, but these ran: ")
    assert any(short(kernel) in reason for kernel in ran)


@pytest.mark.parametrize("ran", [[COPY], ["ampere_sgemm_128x64_tn"]])
def test_a_composition_of_plain_kernels_is_not_the_named_one(ran: list[str]) -> None:
    assert "no kernel of cutlass ran" in family_mismatch(ran, "cutlass")


def test_a_profile_without_any_kernel_proves_nothing_against_the_family() -> None:
    assert family_mismatch([], "cutlass") == ""


def test_kernels_of_no_family_are_named_once_and_few() -> None:
    plain = [f"void at::native::kernel_{n % 5}<{n}>(int)" for n in range(20)]
    assert attention_kernels(plain) == [f"at::native::kernel_{n}" for n in range(3)]
    assert attention_kernels([*plain, FLASH2, FLASH2]) == ["pytorch_flash::flash_fwd_kernel"]


def test_names_are_shown_without_their_arguments() -> None:
    assert short(FLASH2) == "pytorch_flash::flash_fwd_kernel"
    assert attention_kernels([COPY, FLASH2]) == ["pytorch_flash::flash_fwd_kernel"]
    assert attention_kernels([COPY]) == ["at::native::elementwise_kernel"]
    assert len(short("x" * 500)) == 80
