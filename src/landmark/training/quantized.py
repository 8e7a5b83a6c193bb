"""Weights in 4 bits through bitsandbytes: whether it can work here, and what it is asked for."""

import torch
from transformers import BitsAndBytesConfig
from transformers.utils.import_utils import is_bitsandbytes_available


def check_four_bits() -> None:
    """Raise ValueError unless bitsandbytes is installed and can keep weights in 4 bits on this machine."""
    if not is_bitsandbytes_available():
        raise ValueError("--load-in 4bit needs a recent bitsandbytes: pip install 'landmark-attention[quantized]'")
    from bitsandbytes import functional

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        packed, state = functional.quantize_4bit(torch.ones(64, device=device))
        functional.dequantize_4bit(packed, state)
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"--load-in 4bit: the bitsandbytes that is installed cannot work on this machine's {device} ({error}); "
            "leave --load-in out, or train where it can"
        ) from error


def four_bits(compute: torch.dtype) -> BitsAndBytesConfig:
    """The 4-bit normal floats of QLoRA (Dettmers et al. 2023), their scales quantized too; products in `compute`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def keep_numbers() -> None:
    """Lets models that are loaded from now on keep their weights of 4 bits as they are while they are evaluated.

    On CPUs that multiply in bfloat16, bitsandbytes would pack them anew for that, with scales of fewer bits, and a
    training would go on with other numbers than before. There is no setting for it.
    """
    from bitsandbytes.nn import modules

    name = "has_avx512bf16"  # which a layer asks when it is made
    if hasattr(modules, name):
        setattr(modules, name, lambda: False)
