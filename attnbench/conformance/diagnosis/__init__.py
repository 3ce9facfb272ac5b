"""From a failure to its cause: wrong formulas that reproduce it, patterns of its error, the smallest failing case."""
