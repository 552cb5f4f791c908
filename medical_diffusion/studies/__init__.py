"""Experiments over several training runs."""
