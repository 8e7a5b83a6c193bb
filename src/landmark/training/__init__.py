"""Training landmark models with the Hugging Face Trainer: stages, weighted loss, exact resuming."""

import logging

# It warns of a kernel that training has no use for, whenever transformers' Trainer imports it by way of peft.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
