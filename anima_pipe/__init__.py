"""A staged data pipeline and trainer for adapters of the Anima text-to-image model."""

__version__ = "0.1.0"
