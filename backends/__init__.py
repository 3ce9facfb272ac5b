"""The bundled backends: one file or folder each; the file's name is the backend's name."""
