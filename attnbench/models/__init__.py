"""The model suites: a small Transformer, trained and sampled, on text, code and digits that ship with Python."""
