"""One engine a file, behind the protocols of `runtimes.base`; the functions here choose among them."""

from edgevlm.runtimes.select import open_decoder, open_fusion, open_text, open_vision

__all__ = ["open_decoder", "open_fusion", "open_text", "open_vision"]
