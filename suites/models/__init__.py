"""Which models show what a backend does? A small Transformer on text, code and digits that ship with Python."""
