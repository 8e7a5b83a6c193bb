"""What a model has read, kept on disk: written by one process, opened by many, whole after a crash at any instant."""
