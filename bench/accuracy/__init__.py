"""Accuracy on the field's own benchmarks: their files read, their questions asked, answers scored by their rules."""
