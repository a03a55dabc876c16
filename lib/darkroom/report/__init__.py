"""Figures, tables and widgets: frames in, something to look at out."""
