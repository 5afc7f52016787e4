"""The settings of runs: frozen dataclasses, one module for each stage."""
