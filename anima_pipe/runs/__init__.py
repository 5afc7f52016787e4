"""Runs of the stages as a library."""
