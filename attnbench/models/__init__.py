"""The model suites: a small Transformer, trained and decoded, on text, code and digits that ship with Python."""
