"""The rows of the option table, one file per part of the work."""
