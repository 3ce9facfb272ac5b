"""The bundled suites as TOML files, and the pytest plug-in that runs them through pytest-benchmark."""
