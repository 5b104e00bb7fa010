"""The version of EdgeVLM; one place."""

__version__ = "0.1.0"
