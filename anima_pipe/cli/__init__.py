"""The command line: `anima-pipe`, its commands, and how errors and options meet the user."""
