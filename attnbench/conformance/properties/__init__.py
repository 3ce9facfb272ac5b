"""Properties of attention that need no exact answer."""
