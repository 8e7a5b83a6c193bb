"""Training of landmark models with the Hugging Face Trainer: stages, weighted loss, exact resumption."""

import logging

# Silences a warning about an unused kernel whenever the Trainer imports bitsandbytes through peft.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
