"""`scenes` must be deterministic, fair, and answerable from the image alone."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from sklearn.datasets import load_digits as sklearn_digits

from edgevlm.errors import InputError
from edgevlm.zoo.digits import SPLITS, load_digits, split_indices
from edgevlm.zoo.drawing import COLOURS, Scene, render
from edgevlm.zoo.scenes import MAX_OBJECTS, TYPES, Question, ask, chance, compose, sample, scene_rng, scenes


def solve(question: str, scene: Scene) -> set[str]:
    """Every answer that the description supports, worked out from the words of the question alone."""
    words = question.rstrip("?").split()
    objects = scene.objects
    if question == "How many shapes are there?":
        return {str(len(objects))}
    if question == "What number is written?":
        return {plate.text for plate in scene.plates}
    if question.startswith("What colour is the "):
        return {o.colour for o in objects if o.shape == words[4]}
    if question.startswith("What shape is the "):
        return {o.shape for o in objects if o.colour == words[4]}
    if question.startswith("Is there "):
        return {"yes" if any((o.colour, o.shape) == (words[3], words[4]) for o in objects) else "no"}
    (a,) = [o for o in objects if (o.colour, o.shape) == (words[2], words[3])]
    (b,) = [o for o in objects if (o.colour, o.shape) == (words[-2], words[-1])]
    if "left" in words:
        return {"left" if a.x < b.x else "right"}
    return {"above" if a.y < b.y else "below"}


def described(split: str, count: int, seed: int = 0) -> list[tuple[Scene, list[Question]]]:
    """Scene descriptions and questions without the cost of drawing."""
    result = []
    for index in range(count):
        rng = scene_rng(split, seed, index)
        scene = compose(split, rng)
        result.append((scene, [q for q in (ask(t, scene, rng) for t in TYPES) if q is not None]))
    return result


def test_digits_are_scikit_learns_images_unchanged() -> None:
    ours, theirs = load_digits(), sklearn_digits()
    assert np.array_equal(ours.images, theirs.images)
    assert np.array_equal(ours.labels, theirs.target)


def test_splits_share_no_digit_image_and_cover_all() -> None:
    indices = {split: {i for cls in split_indices(split) for i in cls} for split in SPLITS}
    assert sum(len(s) for s in indices.values()) == len(set().union(*indices.values())) == 1797
    labels = load_digits().labels
    for split in SPLITS:
        for digit, members in enumerate(split_indices(split)):
            assert len(members) >= 15
            assert {int(labels[i]) for i in members} == {digit}


def test_plates_draw_their_digits_from_the_split_alone() -> None:
    for split in SPLITS:
        allowed = split_indices(split)
        for scene, _ in described(split, 60):
            for plate in scene.plates:
                for digit, index in zip(plate.text, plate.digit_indices, strict=True):
                    assert index in allowed[int(digit)]


def test_same_seed_gives_the_same_items_and_another_seed_or_split_others() -> None:
    first, again = list(scenes("test", 12, seed=3)), list(scenes("test", 12, seed=3))
    assert [(i.id, i.question, i.answer) for i in first] == [(i.id, i.question, i.answer) for i in again]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first, again, strict=True))
    for other in (next(scenes("test", 1, seed=4)), next(scenes("calibration", 1, seed=3))):
        assert not np.array_equal(first[0].image, other.image)


def test_items_of_one_image_share_its_id_and_have_ids_of_their_own() -> None:
    items = list(scenes("test", 30))
    assert len(items) == 30
    assert len({item.id for item in items}) == 30
    by_image = Counter(item.image_id for item in items)
    assert max(by_image.values()) <= len(TYPES)
    image = items[0].image
    assert image.shape == (512, 512, 3)
    assert image.dtype == np.uint8


def test_every_answer_follows_from_the_description_and_only_one_does() -> None:
    for scene, questions in described("test", 300):
        assert 1 <= len(scene.objects) <= MAX_OBJECTS
        for question in questions:
            assert solve(question.question, scene) == {question.answer}, (question, scene)
            assert question.answer == question.answer.lower()


def test_relations_are_asked_only_of_objects_clearly_apart() -> None:
    for scene, questions in described("test", 200):
        for question in questions:
            if question.type == "relation":
                words = question.question.rstrip("?").split()
                (a,) = [o for o in scene.objects if (o.colour, o.shape) == (words[2], words[3])]
                (b,) = [o for o in scene.objects if (o.colour, o.shape) == (words[-2], words[-1])]
                assert abs(a.x - b.x if "left" in words else a.y - b.y) >= 56


def test_no_answer_of_a_type_is_likelier_than_its_stated_chance() -> None:
    counts = {question_type: Counter[str]() for question_type in TYPES}
    for _, questions in described("test", 4000):
        for question in questions:
            likely = question.question if question.type == "relation" else ""
            counts[question.type][("x" if "left" in likely else "y" if likely else "") + question.answer] += 1
    for question_type, counter in counts.items():
        total = sum(counter.values())
        expected = chance(question_type) / (2 if question_type == "relation" else 1)
        error = 4 * (expected * (1 - expected) / total) ** 0.5
        assert counter.most_common(1)[0][1] / total <= expected + error, question_type


def test_objects_and_plates_never_overlap() -> None:
    for scene, _ in described("train", 200):
        boxes = [(o.x, o.y, o.size, o.size) for o in scene.objects]
        boxes += [(p.x, p.y, p.width, p.height) for p in scene.plates]
        for i, (x, y, w, h) in enumerate(boxes):
            assert w / 2 <= x <= scene.size - w / 2
            assert h / 2 <= y <= scene.size - h / 2
            for u, v, s, t in boxes[i + 1 :]:
                assert abs(x - u) >= (w + s) / 2 or abs(y - v) >= (h + t) / 2


def test_the_image_shows_what_the_description_says() -> None:
    """The pixel at each centre has the object's colour; a plate has ink on white."""
    for index in range(12):
        scene, _, image = sample("test", 5, index)
        for item in scene.objects:
            patch = image[int(item.y) - 3 : int(item.y) + 4, int(item.x) - 3 : int(item.x) + 4].mean(axis=(0, 1))
            nearest = min(COLOURS, key=lambda name: float(np.abs(patch - COLOURS[name]).sum()))
            assert nearest == item.colour
        for plate in scene.plates:
            top, left = int(plate.y - plate.height / 2) + 4, int(plate.x - plate.width / 2) + 4
            area = image[top : top + int(plate.height) - 8, left : left + int(plate.width) - 8].astype(int)
            assert area.max() > 225
            assert area.min() < 90


def test_brightest_backgrounds_do_not_wrap_around() -> None:
    """Grain is added in uint8: an overflow would turn white specks black."""
    for index in range(20):
        rng = np.random.default_rng(index)
        image = render(Scene(256, (), ()), rng)
        assert image.min() > 90


@pytest.mark.parametrize("bad", ["validation", ""])
def test_unknown_split_is_refused(bad: str) -> None:
    with pytest.raises(InputError, match="unknown split"):
        next(islice(scenes(bad, 1), 1))


def test_scenes_import_nothing_of_the_host_half() -> None:
    import subprocess
    import sys

    code = "import sys; sys.modules['torch'] = sys.modules['tokenizers'] = None; import edgevlm.zoo.scenes"
    subprocess.run([sys.executable, "-c", code], check=True)
