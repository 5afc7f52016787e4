"""Kohya's dialect at the edge: option tables and config files in, plain values out."""
