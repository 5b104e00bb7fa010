"""Passes that make a model smaller without training: fewer visual tokens, fewer and sparser weights."""
