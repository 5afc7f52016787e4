"""Runs the command line as `python -m anima_pipe.cli`."""

from anima_pipe.cli.main import main

if __name__ == "__main__":
    main()
