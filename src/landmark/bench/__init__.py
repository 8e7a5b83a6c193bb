"""Speed and memory, measured: attention operations, reading through memory, decoding (docs/performance.md)."""
