"""Ask bundles to read a handwritten number: `python tools/ask_number.py IMAGE BUNDLE...`, the last part of `make demo`.

Saves an image of the accuracy set's test split, whose digits are scans of real handwriting, as IMAGE, and asks each
bundle through the command line. Prints the commands, so that they can be repeated, the answers, and the truth.
"""

import shlex
import subprocess
import sys
from pathlib import Path

from PIL import Image

from edgevlm.zoo.scenes import scenes


def main(image: Path, bundles: list[str]) -> int:
    item = next(item for item in scenes("test", sys.maxsize) if item.type == "number")
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(item.image).save(image)
    print(f"{image} shows the handwritten number {item.answer}.")
    for bundle in bundles:
        command = ["edgevlm", "run", bundle, "--image", str(image), "--prompt", item.question]
        print("$", shlex.join(command), flush=True)
        status = subprocess.run([sys.executable, "-m", *command], check=False).returncode
        if status != 0:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
