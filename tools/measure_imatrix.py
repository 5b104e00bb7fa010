"""What an importance matrix from images gains, as a table of docs/measurements/imatrix.md.

In: a model and GGUF types. Out: for each type without an importance matrix, with one from the calibration's prompts
alone, with one from their images and prompts, and, at q4_0, with codes that GPTQ chose by the same: the KL divergence
of the answers' distributions from those of the float32 file, on questions about images of the test split of `scenes`,
all run by llama.cpp; its mean over questions with a 95% interval, and the paired difference from the row above. Run as

    python tools/measure_imatrix.py -n 1000 zoo:nano-fastvlm q4_0 iq4_nl q4_k_m
"""

import argparse
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edgevlm import reference
from edgevlm.assembly import ImageAssembler
from edgevlm.calibration import Calibration
from edgevlm.calibration.activations import IGNORE, Activations, Sequence
from edgevlm.calibration.sources import open_calibration
from edgevlm.context import image_parts, segments, splice
from edgevlm.exporters.gguf.exporter import export
from edgevlm.exporters.gguf.imatrix import Imatrix, collect, make, write_imatrix
from edgevlm.imageio import load_image
from edgevlm.models import VlmModel, load, resolve
from edgevlm.passes import PassContext
from edgevlm.preprocess import prepare
from edgevlm.prompt import Message, PromptFormatter
from edgevlm.quant.quantize import Quantize, QuantizeConfig
from edgevlm.runtimes.base import DecoderEngine, EngineOptions, Segment
from edgevlm.runtimes.llama_cpp import LlamaCppDecoder
from edgevlm.tokenizer import Tokenizer
from edgevlm.zoo.scenes import Item, scenes

Kl = NDArray[np.float64]


def silent(*_: object) -> None:
    """Progress of a run that nobody watches."""


@dataclass(frozen=True)
class Asked:
    """A prompt with its image as the decoder gets it, and the ids of the right answer, the stop token included."""

    prompt: list[Segment]
    answer: list[int]


def asked(model: VlmModel, items: Iterable[Item]) -> Iterator[Asked]:
    """Each item's prompt; neighbours that share an image share its features."""
    spec, tokenizer = model.spec, Tokenizer(model.tokenizer_files["tokenizer.json"])
    formatter, assembler = PromptFormatter(spec.prompt, tokenizer), ImageAssembler(spec, tokenizer)
    image_id = ""
    for item in items:
        if item.image_id != image_id:
            image_id, image = item.image_id, prepare(load_image(item.image), spec.preprocess)
            (seen,) = reference.encoded_images(model, [image])
            parts = image_parts(assembler.pieces(seen.rows, image, seen.places), image.key)
        ids = formatter.start([*formatter.system_messages(None), Message("user", item.question, images=1)])
        answer = [*tokenizer.encode_plain(item.answer), spec.prompt.stop_token_ids[0]]
        yield Asked(segments(splice(ids, [parts])), answer)


def answered(engine: DecoderEngine, questions: list[Asked]) -> list[Kl]:
    """Log-probabilities `[P, V]` of each question, at the tokens of its answer."""
    found = []
    for question in questions:
        engine.reset()
        logits = [engine.prefill(question.prompt), *(engine.decode(token).copy() for token in question.answer[:-1])]
        found.append(torch.log_softmax(torch.from_numpy(np.stack(logits)).double(), dim=1).numpy())
    return found


def log_probabilities(model: VlmModel, path: Path, questions: list[Asked]) -> list[Kl]:
    """The same as llama.cpp computes them."""
    engine = LlamaCppDecoder(path, model.spec.decoder, EngineOptions(threads=1, context_length=1024))
    try:
        return answered(engine, questions)
    finally:
        engine.close()


def divergence(reference_rows: list[Kl], rows: list[Kl]) -> Kl:
    """KL of each question, mean over its answer's tokens, in nats `[Q]`."""
    pairs = zip(reference_rows, rows, strict=True)
    return np.array([(np.exp(p) * (p - q)).sum(axis=1).mean() for p, q in pairs])


def from_text(model: VlmModel, calibration: Calibration) -> Imatrix:
    """Importances from the calibration's prompts and answers without their images."""
    tokenizer = Tokenizer(model.tokenizer_files["tokenizer.json"])
    formatter = PromptFormatter(model.spec.prompt, tokenizer)
    states, sequences = [], []
    for sample in calibration.samples():
        ids = formatter.start([*formatter.system_messages(None), Message("user", sample.prompt)])
        ids += tokenizer.encode_plain(sample.answer)
        count = len(ids)
        states.append(torch.from_numpy(reference.token_embeddings(model, ids)))
        sequences.append(
            Sequence(torch.arange(count)[None], torch.zeros(count, dtype=torch.bool), torch.full((count,), IGNORE))
        )
    return collect(model, Activations(model.spec.decoder, states, sequences), "text", silent)


def with_gptq(model: VlmModel, calibration: Calibration) -> VlmModel:
    """The model with codes on the grid of Q4_0."""
    return Quantize(QuantizeConfig(scheme="q4_0"), seed=0).run(model, PassContext(calibration, model, silent))


def quantized(model: VlmModel, folder: Path, gguf_type: str, imatrix: Imatrix | None) -> tuple[Path, float]:
    """A file in `folder`, and its bits per weight."""
    path = None
    if imatrix is not None:
        path = folder / "imatrix.gguf"
        write_imatrix(path, imatrix)
    (artifact,) = export(model, folder, gguf_type=gguf_type, imatrix=path, progress=silent)
    return folder / artifact.path, artifact.bits_per_weight


def interval(values: Kl) -> str:
    """Mean and 95% interval."""
    half = 1.96 * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():.5f} ({values.mean() - half:.5f} to {values.mean() + half:.5f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure what an importance matrix from images gains.")
    parser.add_argument("model")
    parser.add_argument("types", nargs="+")
    parser.add_argument("-n", type=int, default=1000, help="test questions")
    parser.add_argument("--calibrate", type=int, default=128, help="calibration samples")
    arguments = parser.parse_args()
    model = load(resolve(arguments.model))
    calibration = open_calibration("scenes", arguments.calibrate)
    imatrices = {"none": None, "text": from_text(model, calibration), "images": make(model, calibration, silent)}
    questions = list(asked(model, scenes("test", arguments.n)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        right = log_probabilities(model, quantized(model, folder, "f32", None)[0], questions)
        print("| type | importance from | bits per weight | KL, nats | change |\n|---|---|---:|---:|---:|")
        for gguf_type in arguments.types:
            ways = [(source, model, imatrix) for source, imatrix in imatrices.items()]
            if gguf_type == "q4_0":
                ways.append(("images, by GPTQ", with_gptq(model, calibration), None))
            above: Kl | None = None
            for source, given, imatrix in ways:
                path, bits = quantized(given, folder, gguf_type, imatrix)
                found = divergence(right, log_probabilities(model, path, questions))
                change = "" if above is None else interval(found - above)
                print(f"| {gguf_type} | {source} | {bits:.2f} | {interval(found)} | {change} |", flush=True)
                above = found


if __name__ == "__main__":
    main()
