"""FlashAttention-2 with its deterministic backward: the same, with gradients that repeat bit for bit."""

from ._flash_attn_2 import flash_attn_2

REQUIRES = {"flash_attn.flash_attn_interface": "attnbench env create flash_attn"}
ENVIRONMENT = "flash_attn"

backend = flash_attn_2(ENVIRONMENT, deterministic=True)
