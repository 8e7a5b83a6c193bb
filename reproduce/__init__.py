"""The experiments of Mohtashami & Jaggi 2023, by one command: python -m reproduce --help."""
