"""Each benchmark's files are read as published: every question, its picture, its right answers and its prompt."""

import json
from pathlib import Path

import pytest
from benchmark_files import MAKERS, base64_picture, mmbench, write_lines, write_table

from edgevlm.bench.accuracy.items import Item, Record, Skipped
from edgevlm.bench.accuracy.reading import Folder
from edgevlm.bench.accuracy.sets import SETS
from edgevlm.bench.accuracy.sets.base import prompt
from edgevlm.bench.job import Prediction
from edgevlm.bench.tasks import choose, find_task
from edgevlm.errors import InputError


def items(name: str, folder: Path, split: str = "", **options: str) -> list[Item]:
    task = find_task(name, str(folder), **options)
    found = list(task.items(split or task.splits[0], 10**9, 0))
    assert all(isinstance(item, Item) for item in found), found
    return [item for item in found if isinstance(item, Item)]


@pytest.mark.parametrize("name", list(SETS))
def test_every_question_of_every_layout_is_read_with_its_picture(tmp_path: Path, name: str) -> None:
    make, count = MAKERS[name]
    make(tmp_path)
    found = items(name, tmp_path)
    assert len(found) == count
    assert len({item.id for item in found}) == count
    for item in found:
        assert all(picture.shape == (12, 16, 3) for picture in item.open())
        assert item.question
        assert item.answers or name == "mmvet"


def test_vqav2_joins_questions_with_ten_answers(tmp_path: Path) -> None:
    MAKERS["vqav2"][0](tmp_path)
    first, second = items("vqav2", tmp_path)
    assert first.answers == (*["red"] * 8, "orange", "pink")
    assert first.question == "What colour is the ball?\nAnswer the question using a single word or phrase."
    assert (first.type, second.type, first.image_id) == ("other", "number", "42")


def test_textvqa_wordings_differ(tmp_path: Path) -> None:
    MAKERS["textvqa"][0](tmp_path)
    assert items("textvqa", tmp_path)[0].question.startswith("what is the brand")
    assert items("textvqa", tmp_path, template="lmms-eval")[0].question.startswith("What is the brand")


def test_mme_puts_its_ending_in_the_words_of_the_template(tmp_path: Path) -> None:
    MAKERS["mme"][0](tmp_path)
    plain, official = items("mme", tmp_path)[0], items("mme", tmp_path, template="official")[0]
    assert plain.question == "Is this existence?\nAnswer the question using a single word or phrase."
    assert official.question == "Is this existence? Please answer yes or no."


def test_mmbench_rotations_move_the_right_letter_with_its_text(tmp_path: Path) -> None:
    mmbench(tmp_path)
    found = items("mmbench", tmp_path)
    assert [item.id for item in found] == ["241", "1000241", "2000241", "252", "1000252"]
    assert [item.answer for item in found] == ["B", "C", "A", "A", "B"]
    assert all(item.choices["ABC".index(item.answer)] == "a dog" for item in found[:3])
    assert found[0].question == (
        "Identify\tit:\nA. a cat\nB. a dog\nC. a hen\nAnswer with the option's letter from the given choices directly."
    )
    assert found[3].image_id == found[0].image_id  # its picture is that of row 241
    assert [item.id for item in items("mmbench", tmp_path, "vanilla")] == ["241", "252"]


def test_mmbench_takes_rotations_that_the_table_holds(tmp_path: Path) -> None:
    row = {"question": "?", "A": "x", "B": "y", "answer": "A", "image": base64_picture(1)}
    turned = {**row, "index": 1_000_007, "A": "y", "B": "x", "answer": "B", "image": "7"}
    write_table(tmp_path / "MMBench_DEV_EN.tsv", [{**row, "index": 7}, turned])
    assert [(item.id, item.group) for item in items("mmbench", tmp_path)] == [("7", "7"), ("1000007", "7")]


def test_mmmu_reads_options_as_literals_and_several_pictures(tmp_path: Path) -> None:
    MAKERS["mmmu"][0](tmp_path)
    choice, open_ = items("mmmu", tmp_path)
    assert choice.choices == ("$6", "$7", "$8")
    assert (open_.choices, open_.answers, len(open_.open())) == ((), ("7",), 2)
    assert (choice.type, open_.type) == ("Accounting", "Math")


def test_scienceqa_asks_what_has_an_image_in_the_split(tmp_path: Path) -> None:
    MAKERS["scienceqa"][0](tmp_path)
    (item,) = items("scienceqa", tmp_path)
    assert item.answer == "B"
    assert item.question.startswith("Context: Look at its ears.\nWhich animal is this?\nA. a cat\nB. a dog\n")


def test_table_of_vlmevalkit_stands_for_the_official_files(tmp_path: Path) -> None:
    rows = [
        {"index": 0, "image": base64_picture(1), "question": "Is there?", "answer": "Yes", "category": "random"},
        {"index": 1, "image": "0", "question": "Is there not?", "answer": "No", "category": "popular"},
    ]
    write_table(tmp_path / "POPE.tsv", rows)
    assert [item.answer for item in items("pope", tmp_path)] == ["Yes", "No"]
    (only,) = items("pope", tmp_path, "popular")
    assert only.open()[0].shape == (12, 16, 3)


def test_table_spells_lists_of_answers_and_of_pictures(tmp_path: Path) -> None:
    write_table(
        tmp_path / "TextVQA_VAL.tsv",
        [{"index": 0, "image": base64_picture(1), "question": "?", "answer": str(["a"] * 10)}],
    )
    assert items("textvqa", tmp_path)[0].answers == ("a",) * 10
    pictures = str([base64_picture(1), base64_picture(2)])
    write_table(
        tmp_path / "MMMU_DEV_VAL.tsv",
        [
            {"index": 0, "image": pictures, "question": "?", "A": "x", "B": "y", "answer": "A", "split": "validation"},
            {"index": 1, "image": pictures, "question": "?", "A": "x", "B": "y", "answer": "A", "split": "dev"},
        ],
    )
    (item,) = items("mmmu", tmp_path)
    one, two = item.open()
    assert (one != two).any()


def test_parquet_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "validation-00000-of-00001.parquet").write_bytes(b"PAR1")
    for name in ("mmmu", "naturalbench"):
        with pytest.raises(InputError) as error:
            find_task(name, str(tmp_path)).total("val")
        assert "docs/accuracy.md" in error.value.hint


def answer(item: Item, said: str, correct: bool, parsed: str = "") -> Prediction:
    return Prediction(
        id=item.id,
        image_id=item.image_id,
        type=item.type,
        question=item.question,
        answer=item.answer,
        predicted=said,
        token_ids=[1],
        correct=correct,
        parsed=parsed,
        group=item.group,
    )


def figures(name: str, predictions: list[Prediction], scorer: str = "") -> dict[str, float | None]:
    known = SETS[name]
    return {figure.name: figure.value for figure in known.figures(predictions, scorer or known.scorers[0])}


def test_pope_figures_by_hand(tmp_path: Path) -> None:
    """Of three yes two are found, of three no one is taken for a yes: precision 2/3, recall 2/3."""
    MAKERS["pope"][0](tmp_path)
    found = items("pope", tmp_path)
    said = ["yes", "yes", "yes", "no", "no", "no"]
    answers = [answer(item, s, s == item.answer, s) for item, s in zip(found, said, strict=True)]
    scores = figures("pope", answers)
    assert scores["precision"] == scores["recall"] == scores["F1"] == pytest.approx(2 / 3)
    assert scores["yes ratio"] == 0.5
    # random: one yes right, one wrong, F1 2/3; popular: all right, 1; adversarial: no yes said, undefined
    assert scores["mean F1 of the parts"] == pytest.approx((2 / 3 + 1) / 2)
    unread = [a.model_copy(update={"parsed": "maybe"}) if a.answer == "yes" else a for a in answers]
    assert figures("pope", unread)["recall"] == 0
    assert figures("pope", unread, "pope/lmms-eval")["recall"] is None
    assert figures("pope", unread, "pope/lmms-eval")["yes ratio"] == 0.5


def test_mme_sums_accuracy_and_accuracy_plus(tmp_path: Path) -> None:
    """All right but one of the two about `count`: 50 + 0 there, 200 in each of the other nine."""
    MAKERS["mme"][0](tmp_path)
    found = items("mme", tmp_path)
    answers = [answer(item, "", not (item.type == "count" and item.answer == "No")) for item in found]
    scores = figures("mme", answers)
    assert (scores["count"], scores["perception"], scores["cognition"]) == (50, 9 * 200 + 50, 800)


def test_mmbench_counts_a_question_only_if_all_rotations_are_right(tmp_path: Path) -> None:
    mmbench(tmp_path)
    answers = [answer(item, "x", item.id != "2000241") for item in items("mmbench", tmp_path)]
    whole = SETS["mmbench"].units(answers)
    assert [(unit.id, unit.correct) for unit in whole] == [("241", False), ("252", True)]
    assert figures("mmbench", answers)["accuracy of single rotations"] == 0.8


def test_naturalbench_group_figures(tmp_path: Path) -> None:
    """Only the second question about the second image is wrong."""
    MAKERS["naturalbench"][0](tmp_path)
    answers = [answer(item, "", item.id != "0-1-1") for item in items("naturalbench", tmp_path)]
    assert figures("naturalbench", answers) == {"Q-Acc": 0.5, "I-Acc": 0.5, "G-Acc": 0}


def test_ocrbench_score_is_a_sum(tmp_path: Path) -> None:
    MAKERS["ocrbench"][0](tmp_path)
    found = items("ocrbench", tmp_path)
    assert figures("ocrbench", [answer(found[0], "", True), answer(found[1], "", False)]) == {"score": 1}
    assert found[1].id.startswith("HME100k-")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vqav2", [{"question_id": 42000, "answer": "Red."}, {"question_id": 42001, "answer": "Red."}]),
        ("gqa", [{"questionId": "201307251", "prediction": "red"}]),
        ("mmmu", {"validation_Accounting_1": "Red.", "validation_Math_2": "Red."}),
        ("mmvet", {"v1_0": "Red."}),
    ],
)
def test_submissions_are_what_judges_and_servers_take(tmp_path: Path, name: str, expected: object) -> None:
    MAKERS[name][0](tmp_path)
    submission = SETS[name].submission
    assert submission is not None
    written = submission.write([answer(item, "Red.", False) for item in items(name, tmp_path)])
    assert json.loads(written) == expected


def test_llava_lines_are_written_as_the_harness_reads_them(tmp_path: Path) -> None:
    MAKERS["llava"][0](tmp_path)
    submission = SETS["llava"].submission
    assert submission is not None
    lines = submission.write([answer(item, "Red.", False) for item in items("llava", tmp_path)]).splitlines()
    row = json.loads(lines[0])
    assert set(row) == {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
    assert (row["question_id"], row["text"]) == ("0", "Red.")


def test_llava_questions_without_answers_beside_others_are_skipped_by_name(tmp_path: Path) -> None:
    MAKERS["llava"][0](tmp_path)
    row = {"question_id": 0, "image": "1.jpg", "text": "Which?"}
    write_lines(tmp_path / "questions.jsonl", [row, {**row, "question_id": 1, "answer": "red"}])
    first, second = find_task("llava", str(tmp_path)).items("test", 9, 0)
    assert isinstance(first, Skipped)
    assert isinstance(second, Item)


def test_a_sample_keeps_what_counts_together(tmp_path: Path) -> None:
    MAKERS["mme"][0](tmp_path)
    folder = Folder(tmp_path)
    entries = SETS["mme"].read(folder, "test")
    drawn = choose(entries, 5, seed=1)
    assert len(drawn) == 6
    groups = [entry.group for entry in drawn if isinstance(entry, Record)]
    assert all(groups.count(group) == 2 for group in groups)
    assert drawn == choose(entries, 5, seed=1) != choose(entries, 5, seed=2)


def test_texts_of_a_set_have_no_meaning_in_a_template() -> None:
    record = Record("1", "1", "Is {hint} {0.__class__}?", ("a",), (), hint="{question}")
    assert prompt("{hint}{question}", record) == "{question}\nIs {hint} {0.__class__}?"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "trivia"}, "unknown task"),
        ({"name": "pope"}, "needs the folder"),
        ({"name": "scenes", "data": "."}, "is generated"),
        ({"name": "pope", "data": "/nowhere"}, "not a folder"),
        ({"name": "pope", "data": ".", "scorer": "vqa/m4c"}, "has no scorer"),
        ({"name": "pope", "data": ".", "template": "x"}, "has no template"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(options: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        find_task(**options)
