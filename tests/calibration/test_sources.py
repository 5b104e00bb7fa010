"""Calibration samples from `scenes`, folders and files; what cannot be read is named, what is malformed refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevlm.calibration.sources import PROMPTS, open_calibration
from edgevlm.errors import InputError


def save(path: Path, shade: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(path)
    return path


def write(path: Path, *entries: Any) -> str:
    path.write_text("\n".join(json.dumps(entry) for entry in entries))
    return str(path)


def test_scenes_are_its_calibration_split_with_answers() -> None:
    found = open_calibration("scenes", 5, seed=3)
    first, again = list(found.samples()), list(found.samples())
    assert len(first) == found.count == 5
    assert all(np.array_equal(a.image, b.image) and a.prompt == b.prompt for a, b in zip(first, again, strict=True))
    assert all(sample.answer for sample in first)
    other = next(iter(open_calibration("scenes", 1, seed=4).samples()))
    assert not np.array_equal(first[0].image, other.image)


def test_a_folder_is_searched_and_questions_take_turns(tmp_path: Path) -> None:
    for index in range(6):
        save(tmp_path / f"deep/{index}.png", index)
    (tmp_path / "notes.txt").write_text("no image")
    found = open_calibration(str(tmp_path), 10)
    samples = list(found.samples())
    assert [int(sample.image[0, 0, 0]) for sample in samples] == list(range(6))
    assert [sample.prompt for sample in samples] == [*PROMPTS, *PROMPTS[:2]]
    assert {sample.answer for sample in samples} == {""}


def test_of_more_than_enough_the_seed_chooses(tmp_path: Path) -> None:
    for index in range(30):
        save(tmp_path / f"{index:02}.png", index)

    def chosen(seed: int) -> list[int]:
        return [int(s.image[0, 0, 0]) for s in open_calibration(str(tmp_path), 8, seed=seed).samples()]

    assert len(chosen(0)) == 8
    assert chosen(0) == chosen(0) == sorted(chosen(0))
    assert chosen(0) != chosen(1)


def test_an_unreadable_image_is_named_and_replaced(tmp_path: Path) -> None:
    for index in range(3):
        save(tmp_path / f"{index}.png", index)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8nothing")
    (tmp_path / "empty.png").write_bytes(b"")
    found = open_calibration(str(tmp_path), 5)
    assert found.count == 3
    assert [text.split(" (")[0] for text in found.skipped] == ["broken.jpg", "empty.png"]


def test_files_of_either_form(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png", 7)
    ours = {"image": "images/a.png", "prompt": "What?", "answer": "red"}
    turns = [
        {"from": "human", "value": "<image>\nWhy?"},
        {"from": "gpt", "value": "So."},
        {"from": "human", "value": "?"},
    ]
    llava = {"id": 1, "image": "images/a.png", "conversations": turns}
    text_only = {"id": 2, "conversations": turns}
    as_array = tmp_path / "array.json"
    as_array.write_text(json.dumps([ours, text_only, llava]))
    for source in (write(tmp_path / "lines.jsonl", ours, text_only, llava), str(as_array)):
        samples = list(open_calibration(source, 9).samples())
        assert [(s.prompt, s.answer, int(s.image[0, 0, 0])) for s in samples] == [
            ("What?", "red", 7),
            ("Why?", "So.", 7),
        ]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"image": "../secret.png", "prompt": "?"}, "outside the file's folder"),
        ({"image": "/etc/secret.png", "prompt": "?"}, "outside the file's folder"),
        ({"image": "a.png"}, "no prompt"),
        ({"image": "a.png", "prompt": "<image>\n"}, "asks nothing"),
        ({"image": ["a.png", "a.png"], "prompt": "Both?"}, "no text"),
        ({"image": "a.png", "conversations": [{"from": "human", "value": 3}]}, "no text"),
        (["a.png"], "not a mapping"),
        ({"image": "gone.png", "prompt": "?"}, "no calibration image that can be read"),
        ({"prompt": "text alone"}, "no calibration image that can be read"),
    ],
)
def test_entries_that_cannot_be_used(entry: Any, message: str, tmp_path: Path) -> None:
    save(tmp_path / "data/a.png", 1)
    save(tmp_path / "secret.png", 1)
    with pytest.raises(InputError, match=message) as caught:
        open_calibration(write(tmp_path / "data/c.jsonl", entry), 4)
    assert caught.value.where.startswith(str(tmp_path / "data/c.jsonl"))
    assert caught.value.hint


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.txt").write_text("x")
    (tmp_path / "bad.jsonl").write_text('{"image": ')
    for source, message in {
        "empty": "no calibration image",
        "absent": "no calibration data",
        "words.txt": "cannot be a .txt",
        "bad.jsonl": "not JSON",
    }.items():
        with pytest.raises(InputError, match=message):
            open_calibration(str(tmp_path / source), 4)
    with pytest.raises(InputError, match="0 calibration samples"):
        open_calibration("scenes", 0)
