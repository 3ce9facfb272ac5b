"""Kill rate and false-alarm rate of the judge, over planted bugs and right implementations."""
