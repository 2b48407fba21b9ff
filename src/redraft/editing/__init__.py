"""Changing text that is there already."""
