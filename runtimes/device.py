"""Which processor an engine computes on: what `--device` says.

In: `auto`, `cpu`, `cuda:0`, `tensorrt:0`. Out: a `Device`, or an error that names what is known. Whether a runtime has
it is for the runtime to say. `tensorrt` is ONNX Runtime's TensorRT provider; TensorRT's own engines are on `cuda`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from edgevlm.errors import InputError

DeviceKind: TypeAlias = Literal["auto", "cpu", "cuda", "tensorrt"]


@dataclass(frozen=True)
class Device:
    """A processor, or `auto`; `index` counts the GPUs of this machine."""

    kind: DeviceKind = "auto"
    index: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.index}" if self.is_gpu else self.kind

    @property
    def is_gpu(self) -> bool:
        """Whether a GPU was asked for."""
        return self.kind in ("cuda", "tensorrt")

    def refused(self, what: str, hint: str) -> InputError:
        """The error for a runtime that does not have this device."""
        return InputError(what, f"--device {self}", hint)


#: Each runtime decides.
AUTO = Device()


def parse_device(text: str) -> Device:
    """A device by its name; `cuda` is `cuda:0`.

    Raises:
        InputError: there is no such name.
    """
    match = re.fullmatch(r"(?P<kind>[a-z]+)(:(?P<index>\d{1,2}))?", text)
    for kind in get_args(DeviceKind):
        if match and kind == match["kind"]:
            device = Device(kind, int(match["index"] or 0))
            if device.is_gpu or not match["index"]:
                return device
    raise InputError(f"there is no device {text!r:.40}", "--device", "auto, cpu, cuda:0 or tensorrt:0")
