"""Text in, training windows out: reading, tokenizing, recall tasks and the mixture of both."""
