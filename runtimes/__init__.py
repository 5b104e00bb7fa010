"""One engine a file, behind the protocols of `runtimes.base`; `open_vision` and `open_decoder` choose among them."""

from edgevlm.runtimes.select import open_decoder, open_vision

__all__ = ["open_decoder", "open_vision"]
