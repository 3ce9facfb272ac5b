"""FlashAttention-2 (the package flash-attn): bands, key lengths, packed documents, softcap and ALiBi."""

from ._flash_attn_2 import flash_attn_2

REQUIRES = {"flash_attn.flash_attn_interface": "attnbench env create flash_attn"}
ENVIRONMENT = "flash_attn"

backend = flash_attn_2(ENVIRONMENT, deterministic=False)
