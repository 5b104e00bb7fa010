"""llama.cpp's own tokenizer of a GGUF, as a function from text to ids, and text that is awkward to cut."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import llama_cpp

from edgevlm.runtimes.llama_cpp import load_library

CORPUS = [
    "",
    "What number is written?",
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
    "before<|im_end|>after <|im_start|> x<|endoftext|>",
    "a  b   c    d\te\t\tf \n g\n\nh\n \n\n  i ",
    "\n",
    "   ",
    "\r\n\r\n mixed \r line ends\n",
    "0123456789 3.14159 1,000,000 2026-11-21 x2y3",
    "I'm you're we've they'll HE'S don't IT'LL 'twas",
    "naïve café Ærøskøbing Straße İstanbul ﬁne",
    "日本語の文章です。中文句子,没有空格。한국어 문장",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם مرحبا",  # noqa: RUF001
    "emoji 😀 👩‍👩‍👧 🇩🇪 ☃️ 👍🏽 end",
    "x = {'a': [1, 2]}\nfor i in range(10):\n    print(f\"{i:>3}\")  # comment\n",
    "!!! ??? ... --- ``` \\n \\\\ // <tag attr='v'/> $100 50% #1",
    "\u00a0non\u2003breaking\u200bspace\ufeff",
    "tab\tafter\vvertical\fform",
    "<|im_start|",
    "<image> <|IM_END|>",
]


@contextmanager
def vocabulary(path: Path) -> Iterator[Callable[[str], list[int]]]:
    """The vocabulary alone is loaded; special tokens in the text are recognised, none is added before it."""
    library = load_library()
    parameters = library.llama_model_default_params()
    parameters.vocab_only = True
    model = library.llama_model_load_from_file(str(path).encode(), parameters)
    held = library.llama_model_get_vocab(model)

    def tokenize(text: str) -> list[int]:
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(held, data, len(data), ids, len(ids), False, True)
        assert count >= 0
        return list(ids[:count])

    yield tokenize
    library.llama_model_free(model)
