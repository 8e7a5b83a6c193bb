"""Every speed figure of the project, by one command: python -m benchmarks --help."""
