"""What pruning is for: with a quarter of its image tokens a model answers nearly as well, and better than by chance.

The method that does best on this model stands inside the decoder: a quarter goes on, but layers before that see all.
"""

from edgevlm.bench.pairs import delta_interval
from edgevlm.models import load, resolve
from edgevlm.pruning.tokens import REDUCERS
from edgevlm.zoo.evaluate import answers
from edgevlm.zoo.scenes import scenes

METHOD, PLAIN = "dart", ("random", "uniform")


def test_a_quarter_of_the_tokens_keeps_the_accuracy_that_plain_choices_lose() -> None:
    model, items = load(resolve("zoo:nano-llava")), list(scenes("test", 200))
    for module in (model.vision, model.decoder):
        module.float()
    keep = model.spec.vision.image_tokens // 4

    def right(method: str) -> list[bool]:
        cls = REDUCERS[method]
        found = answers(cls.reduced(model, keep, cls.Options()), items)
        return [answer == item.answer for answer, item in zip(found, items, strict=True)]

    full = [answer == item.answer for answer, item in zip(answers(model, items), items, strict=True)]
    best, images = right(METHOD), [item.image_id for item in items]
    assert sum(best) >= 0.95 * sum(full)
    for plain in PLAIN:
        difference = delta_interval(best, right(plain), images, seed=0)
        assert difference.low > 0, f"{METHOD} against {plain}: {difference}"
