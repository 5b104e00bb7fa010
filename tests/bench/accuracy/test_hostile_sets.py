"""A malicious or broken data set gives a clear error or a counted, named skip; nothing outside of it is opened."""

import base64
import json
import os
import struct
import zlib
from pathlib import Path

import pytest
from bench_fakes import FakeModel
from benchmark_files import base64_picture, picture, write_json, write_lines, write_table

from edgevlm.bench.accuracy.asking import answer_items
from edgevlm.bench.accuracy.items import Item, Skipped
from edgevlm.bench.accuracy.reading import MAX_TEXT, BadRowError, literal_list
from edgevlm.bench.job import AccuracyPlan, Job, Prediction
from edgevlm.bench.report import SkippedItem
from edgevlm.bench.tasks import find_task
from edgevlm.errors import InputError

ROW = {"question_id": 1, "image": "1.png", "text": "Which?", "answer": "red"}


def entries(folder: Path, name: str = "llava") -> list[Item | Skipped]:
    task = find_task(name, str(folder))
    return list(task.items(task.splits[0], 10**9, 0))


def asked(folder: Path, name: str = "llava") -> list[Prediction | SkippedItem]:
    """What the worker reports of every question."""
    n = len(entries(folder, name))
    plan = AccuracyPlan(
        task=name,
        data=str(folder),
        split=find_task(name, str(folder)).splits[0],
        n=n,
        seed=0,
        max_tokens=4,
        control=False,
    )
    seen: list[Prediction | SkippedItem] = []
    answer_items(FakeModel(Job(kind="bundle", path="x", accuracy=plan)), plan, lambda _, item: seen.append(item))
    assert len(seen) == n
    return seen


def reason(folder: Path) -> str:
    """Why the only question is not asked."""
    (only,) = asked(folder)
    assert isinstance(only, SkippedItem)
    return only.reason


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header announces that many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png", "C:\\x.png", "a\0.png"])
def test_a_picture_outside_of_the_folder_is_not_opened(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "set"
    picture(tmp_path / "secret.png")
    write_lines(folder / "questions.jsonl", [{**ROW, "image": name}])
    assert "leads out of the data set's folder" in reason(folder)


def test_a_picture_s_name_that_no_file_can_have_costs_one_question(tmp_path: Path) -> None:
    rows = [{**ROW, "image": "n" * 5000}, {**ROW, "question_id": 2, "image": "1.png"}]
    write_lines(tmp_path / "questions.jsonl", rows)
    picture(tmp_path / "1.png")
    first, second = asked(tmp_path)
    assert isinstance(first, SkippedItem)
    assert "File name too long" in first.reason
    assert isinstance(second, Prediction)


def test_links_that_lead_out_are_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    picture(tmp_path / "secret.png")
    write_lines(folder / "questions.jsonl", [ROW])
    (folder / "1.png").symlink_to(tmp_path / "secret.png")
    assert "leads out" in reason(folder)
    (folder / "1.png").unlink()
    (folder / "loop").symlink_to(folder / "loop")
    write_lines(folder / "questions.jsonl", [{**ROW, "image": "loop/1.png"}])
    assert reason(folder)
    (folder / "questions.jsonl").unlink()
    write_lines(tmp_path / "other.jsonl", [ROW])
    (folder / "questions.jsonl").symlink_to(tmp_path / "other.jsonl")
    with pytest.raises(InputError, match="leads out"):
        entries(folder)


def test_pictures_may_lie_in_a_folder_that_the_user_names(tmp_path: Path) -> None:
    write_lines(tmp_path / "set" / "questions.jsonl", [ROW])
    picture(tmp_path / "pictures" / "1.png")
    task = find_task("llava", str(tmp_path / "set"), str(tmp_path / "pictures"))
    (item,) = task.items("test", 9, 0)
    assert isinstance(item, Item)
    assert item.image.shape == (12, 16, 3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (bomb(10_000, 10_000), "too large"),
        (bomb(100_000, 2), "too large"),
        (b"", "empty"),
        (b"no picture", "not an image"),
        (bomb(16, 16), "cannot be decoded"),
    ],
)
def test_a_picture_that_is_none_or_a_bomb_is_skipped_by_name(tmp_path: Path, content: bytes, said: str) -> None:
    write_lines(tmp_path / "questions.jsonl", [ROW])
    (tmp_path / "1.png").write_bytes(content)
    assert said in reason(tmp_path)


def test_missing_pictures_and_pipes_are_skipped(tmp_path: Path) -> None:
    write_lines(tmp_path / "questions.jsonl", [ROW])
    assert reason(tmp_path) == "the picture is missing"
    os.mkfifo(tmp_path / "1.png")
    assert reason(tmp_path) == "the picture is missing"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"question_id": 1', "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b'"text"', "not an object"),
        (b"[" * 100_000, "not JSON"),
        (b'{"question_id": 1, "image": "1.png"}', "text is missing"),
        (b'{"question_id": {"a": 1}, "image": "1.png", "text": "?"}', "question_id is not a text"),
        (b'{"question_id": true, "image": "1.png", "text": "?"}', "question_id is missing"),
        (b'{"question_id": 1, "image": "1.png", "text": "?", "answers": [[1]]}', "answers does not hold texts"),
        (b'{"question_id": 1, "image": "1.png", "text": "\\ud83d?"}', "half of a surrogate pair"),
        (b'{"question_id": 1, "image": "1.png", "text": "?", "category": "\\udc00"}', "half of a surrogate pair"),
        (
            b'{"question_id": 1, "image": "1.png", "text": "?", "category": "' + b"x" * 30_000 + b'"}',
            "30,000 characters",
        ),
        (b'{"question_id": 1' + b"0" * 5000 + b', "image": "1.png", "text": "?"}', "not JSON"),
    ],
)
def test_a_broken_line_is_skipped_and_the_next_one_asked(tmp_path: Path, line: bytes, said: str) -> None:
    picture(tmp_path / "1.png")
    (tmp_path / "questions.jsonl").write_bytes(line + b"\n" + json.dumps(ROW).encode() + b"\n")
    first, second = entries(tmp_path)
    assert isinstance(first, Skipped)
    assert (first.id, isinstance(second, Item)) == ("line 1", True)
    assert said in first.reason


def test_a_megabyte_of_answer_and_repeated_ids_are_skipped(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    rows = [ROW, {**ROW, "question_id": 2, "answer": "x" * 1_000_000}, ROW]
    write_lines(tmp_path / "questions.jsonl", rows)
    _, long, twice = entries(tmp_path)
    assert isinstance(long, Skipped)
    assert isinstance(twice, Skipped)
    assert long.reason == f"a text of 1,000,000 characters, more than {MAX_TEXT:,}"
    assert twice == Skipped("line 3", "the id 1 was there before")


def test_a_pipe_in_place_of_a_file_is_an_error_and_nobody_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "val_v1.0.json")
    with pytest.raises(InputError, match="not a plain file"):
        entries(tmp_path, "docvqa")


@pytest.mark.parametrize("content", [b"\xff", b"{", b"[" * 100_000, b"[1]", b'{"data": 3}'])
def test_a_whole_file_that_cannot_be_read_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "val_v1.0.json").write_bytes(content)
    with pytest.raises(InputError):
        entries(tmp_path, "docvqa")


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('id')",
        "[x for x in ()]",
        "[open('/etc/passwd')]",
        "[" * 5000,
        "['a'",
        "{'a': 1}",
        "[\0]",
    ],
)
def test_lists_are_literals_and_nothing_is_evaluated(text: str) -> None:
    with pytest.raises(BadRowError):
        literal_list(text)


def test_a_list_of_a_megabyte_is_not_parsed() -> None:
    with pytest.raises(BadRowError, match="more than"):
        literal_list("[" + "1," * 500_000 + "]")


def test_broken_rows_of_a_table_are_skipped_by_name(tmp_path: Path) -> None:
    good = {"index": 0, "image": base64_picture(1), "question": "?", "answer": "Yes", "category": "random"}
    rows = [
        good,
        {**good, "index": 1, "image": "77"},
        {**good, "index": 2, "image": "not base64 " * 20},
        {**good, "index": 3, "image": ""},
        {**good, "index": 4, "image": base64.b64encode(bomb(10_000, 10_000)).decode()},
        {**good, "index": 0},
    ]
    write_table(tmp_path / "POPE.tsv", rows)
    with (tmp_path / "POPE.tsv").open("ab") as file:
        file.write(b"6\tonly two cells\n" + b'7\t"' + b"\xff\t" * 3)
    found = asked(tmp_path, "pope")
    skipped = [(item.id, item.reason) for item in found if isinstance(item, SkippedItem)]
    assert len(found) - len(skipped) == 1
    assert dict(skipped) == {
        "row 2": "its picture is that of row 77, which is not above it",
        "2": "the picture is not base64",
        "row 4": "image is missing",
        "4": "the image is too large: its header announces too many pixels",
        "row 6": "the id 0 was there before",
        "row 7": "it has 2 cells, the header 5",
        "row 8": "it is not UTF-8",
    }


@pytest.mark.parametrize(
    "content", [b"", b"a\tb\n", b"index\tindex\timage\tquestion\n", b"\xff\xfe\n", b"x\t" * 500 + b"\n"]
)
def test_a_table_without_its_columns_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "POPE.tsv").write_bytes(content)
    with pytest.raises(InputError):
        entries(tmp_path, "pope")


def test_names_of_json_files_lead_nowhere(tmp_path: Path) -> None:
    """An image number is a number, whatever the file says."""
    questions = {"questions": [{"question_id": 1, "image_id": "../../etc/passwd", "question": "?"}]}
    answers = [{"answer": "a"}, {"answer": "b"}]
    write_json(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", questions)
    write_json(
        tmp_path / "v2_mscoco_val2014_annotations.json", {"annotations": [{"question_id": 1, "answers": answers}]}
    )
    (only,) = entries(tmp_path, "vqav2")
    assert only == Skipped("row 1", "image_id is no number")
