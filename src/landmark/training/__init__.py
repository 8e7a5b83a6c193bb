"""Training landmark models with the Hugging Face Trainer: stages, weighted loss, exact resuming."""
