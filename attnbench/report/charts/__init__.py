"""The PNG charts of a report."""
