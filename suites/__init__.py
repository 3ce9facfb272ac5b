"""What is swept: suites as TOML files, and the same through pytest-benchmark."""
