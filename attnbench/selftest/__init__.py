"""Kill rate and false-alarm rate of the judge, over mutants and right implementations."""
