"""Ask a bundle through lmms-eval's own registry, model class and requests; started as a process of its own.

In: a bundle, an image, a question and a number of tokens. Out, on standard output: the answers as JSON, and last what
lmms-eval read of our entry point.
"""

import json
import sys
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.models import MODEL_REGISTRY_V2
from PIL import Image


def main(bundle: str, image: str, question: str, tokens: int) -> None:
    """Print the answers to the question once with and once without a text to stop at."""
    cls: Any = MODEL_REGISTRY_V2.get_model_class("edgevlm", force_simple=True)
    model = cls.create_from_arg_string(f"bundle={bundle},threads=1", {"batch_size": 1, "device": "cpu"})
    model.task_dict = {"task": {"test": {0: {"image": Image.open(image)}}}}

    def request(number: int, **options: Any) -> Instance:
        arguments = (f"<image>\n{question}", options, lambda document: [document["image"]], 0, "task", "test")
        about = {"task": "task", "doc_id": 0, "repeats": 1}
        return Instance("generate_until", arguments, number, about)

    whole = model.generate_until([request(0, max_new_tokens=tokens)])
    half = whole[0][: len(whole[0]) // 2]
    cut = model.generate_until([request(1, max_new_tokens=tokens, until=[whole[0][len(half) :]])])
    manifest = MODEL_REGISTRY_V2.get_manifest("edgevlm")
    print(json.dumps({"whole": whole, "cut": cut, "half": half, "class": manifest.simple_class_path}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
