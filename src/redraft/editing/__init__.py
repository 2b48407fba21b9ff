"""Filling gaps and editing in place, on canvases that the engine is given. Model.fill and Model.edit are in model.py;
what they do is in fill.py, selection.py (rewriting a span) and windows.py (proofreading, instructions)."""
