"""Widgets: lines, and tables of lines."""
