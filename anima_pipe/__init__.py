"""A staged data pipeline and trainer for adapters of the Anima text-to-image model.

`anima_pipe.runs` has a call for each stage; `anima_pipe.cli` is the command line.
"""

__version__ = "0.1.0"
