"""The five commands: each reads files, writes files and can be rerun alone."""
