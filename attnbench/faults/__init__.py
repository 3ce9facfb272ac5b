"""Faults of attention, each with the exact answer that it gives: what a diagnosis holds a wrong answer against."""
