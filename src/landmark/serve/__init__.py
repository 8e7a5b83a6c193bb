"""A server that speaks the protocol of OpenAI: contexts that are read once, and answers about them for many."""
