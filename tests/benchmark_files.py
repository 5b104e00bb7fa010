"""Small data sets in exactly the layouts that the benchmarks are published in."""

import base64
import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, seed: int = 0) -> None:
    """A small picture of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(seed, path.suffix))


def encoded(seed: int, suffix: str = ".png") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG" if suffix == ".jpg" else "PNG")
    return buffer.getvalue()


def base64_picture(seed: int) -> str:
    return base64.b64encode(encoded(seed)).decode()


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: Path, rows: Sequence[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_table(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """As pandas writes it: tabs between, quotes where they are needed."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([row.get(name, "") for name in columns] for row in rows)


def ten(*answers: str) -> list[dict[str, object]]:
    return [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers, 1)]


def vqav2(folder: Path) -> None:
    questions = [
        {"question_id": 42000 + i, "image_id": 42, "question": question}
        for i, question in enumerate(("What colour is the ball?", "How many?"))
    ]
    annotations = [
        {
            "question_id": 42000,
            "image_id": 42,
            "question_type": "what color is the",
            "answer_type": "other",
            "multiple_choice_answer": "red",
            "answers": ten(*["red"] * 8, "orange", "pink"),
        },
        {
            "question_id": 42001,
            "image_id": 42,
            "question_type": "how many",
            "answer_type": "number",
            "multiple_choice_answer": "2",
            "answers": ten(*["2"] * 2, *["two people"] * 8),
        },
    ]
    head = {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "license": {}, "data_subtype": "val2014"}
    write_json(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {**head, "questions": questions})
    write_json(folder / "v2_mscoco_val2014_annotations.json", {**head, "annotations": annotations})
    picture(folder / "val2014" / "COCO_val2014_000000000042.jpg")


def textvqa(folder: Path) -> None:
    row = {
        "question_id": 34602,
        "image_id": "003a8ae2ef43b901",
        "question": "what is the brand of this camera?",
        "answers": [*["dakota"] * 9, "clos culombu"],
        "image_classes": ["Cassette deck"],
        "image_width": 1024,
        "image_height": 664,
        "set_name": "val",
    }
    write_json(
        folder / "TextVQA_0.5.1_val.json",
        {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": [row]},
    )
    picture(folder / "train_images" / "003a8ae2ef43b901.jpg")


def gqa(folder: Path) -> None:
    row = {
        "question": "Is the sky dark?",
        "imageId": "n161313",
        "answer": "yes",
        "fullAnswer": "Yes, the sky is dark.",
        "isBalanced": True,
        "groups": {"global": None, "local": "06-sky_dark"},
        "types": {"detailed": "verifyAttr", "semantic": "attr", "structural": "verify"},
        "semantic": [],
        "semanticStr": "",
        "entailed": [],
        "equivalent": ["201307251"],
        "annotations": {},
    }
    write_json(folder / "testdev_balanced_questions.json", {"201307251": row})
    picture(folder / "images" / "n161313.jpg")


def pope(folder: Path) -> None:
    for part in ("random", "popular", "adversarial"):
        rows = [
            {
                "question_id": 1,
                "image": "COCO_val2014_000000310196.jpg",
                "text": f"A cup, {part}?",
                "label": "yes",
            },
            {"question_id": 2, "image": "COCO_val2014_000000310196.jpg", "text": f"Is there a {part}?", "label": "no"},
        ]
        write_lines(folder / f"coco_pope_{part}.json", rows)
    picture(folder / "val2014" / "COCO_val2014_000000310196.jpg")


def mme(folder: Path) -> None:
    from edgevlm.bench.accuracy.sets.mme import COGNITION, PERCEPTION

    for number, task in enumerate((*PERCEPTION, *COGNITION)):
        lines = [
            f"{number}.jpg\tIs this {task}? Please answer yes or no.\tYes",
            f"{number}.jpg\tIs this a house? Please answer yes or no.\tNo",
        ]
        path = folder / "eval_tool" / "Your_Results" / f"{task}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        picture(folder / "MME_Benchmark_release_version" / task / f"{number}.jpg", number)


def mmbench(folder: Path) -> None:
    shared = {"hint": "", "category": "identity_reasoning", "l2-category": "ar", "split": "dev", "comment": ""}
    rows = [
        {"index": 241, "question": "Identify\tit:", "A": "a cat", "B": "a dog", "C": "a hen", "D": "", "answer": "B"},
        {"index": 252, "question": "Which is\nright?", "A": "yes", "B": "no", "C": "", "D": "", "answer": "A"},
    ]
    images = [base64_picture(1), "241"]
    write_table(
        folder / "MMBench_DEV_EN.tsv",
        [{**row, **shared, "image": image, "source": "x"} for row, image in zip(rows, images, strict=True)],
    )


def scienceqa(folder: Path) -> None:
    problem = {
        "question": "Which animal is this?",
        "choices": ["a cat", "a dog"],
        "answer": 1,
        "hint": "Look at its ears.",
        "image": "image.png",
        "task": "closed choice",
        "grade": "grade2",
        "subject": "natural science",
        "topic": "biology",
        "category": "animals",
        "skill": "identify",
        "lecture": "",
        "solution": "",
        "split": "test",
    }
    write_json(folder / "problems.json", {"11": problem, "12": {**problem, "image": None}, "13": problem})
    write_json(folder / "pid_splits.json", {"train": ["13"], "val": [], "test": ["11", "12"]})
    picture(folder / "images" / "test" / "11" / "image.png")


def mmmu(folder: Path) -> None:
    rows = [
        {
            "id": "validation_Accounting_1",
            "question": "<image 1> Which?",
            "options": "['$6', '$7', '$8']",
            "answer": "B",
            "question_type": "multiple-choice",
            "image_1": "validation_Accounting_1_1.png",
            "image_2": None,
        },
        {
            "id": "validation_Math_2",
            "question": "Compare <image 1> and <image 2>: how many?",
            "options": "[]",
            "answer": "7",
            "question_type": "open",
            "image_1": "validation_Math_2_1.png",
            "image_2": "validation_Math_2_2.png",
        },
    ]
    write_lines(folder / "mmmu_val.jsonl", rows)
    for number, name in enumerate(("Accounting_1_1", "Math_2_1", "Math_2_2")):
        picture(folder / f"validation_{name}.png", number)


def seedbench(folder: Path) -> None:
    shared = {"choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four", "segment": []}
    rows = [
        {"answer": "A", "data_id": "1454426_2591111986", "data_type": "image", "question": "How many towels?"},
        {"answer": "B", "data_id": "video_1", "data_type": "video", "question": "What next?"},
    ]
    kinds = (5, 10)
    questions = [
        {**row, **shared, "question_id": f"10165{n}", "question_type_id": kind}
        for n, (row, kind) in enumerate(zip(rows, kinds, strict=True))
    ]
    types = {"Instances Counting": 5, "Action Recognition": 10}
    write_json(folder / "SEED-Bench.json", {"questions": questions, "question_type": types})
    picture(folder / "SEED-Bench-image" / "1454426_2591111986")


def ocrbench(folder: Path) -> None:
    rows = [
        {
            "dataset_name": "IIIT5K",
            "id": 0,
            "image_path": "OCRBench_Images/IIIT5K/1_1.png",
            "question": "what is written in the image?",
            "answers": ["CENTRE"],
            "type": "Regular Text Recognition",
        },
        {
            "dataset_name": "HME100k",
            "id": 1,
            "image_path": "OCRBench_Images/HME100k/2.png",
            "question": "Write the formula.",
            "answers": "x ^ 2",
            "type": "Handwritten Mathematical Expression Recognition",
        },
    ]
    write_json(folder / "OCRBench.json", rows)
    for row in rows:
        picture(folder / str(row["image_path"]))


def naturalbench(folder: Path) -> None:
    row = {
        "Index": 0,
        "Image_0": "0_0.jpg",
        "Image_1": "0_1.jpg",
        "Question_0": "Is it day?",
        "Question_1": "Is there a dog?",
        "Image_0_Question_0": "Yes",
        "Image_1_Question_0": "No",
        "Image_0_Question_1": "No",
        "Image_1_Question_1": "Yes",
        "Question_Type": "yes_no",
    }
    write_lines(folder / "naturalbench.jsonl", [row])
    picture(folder / "0_0.jpg", 0)
    picture(folder / "0_1.jpg", 1)


def chartqa(folder: Path) -> None:
    for part in ("human", "augmented"):
        write_json(folder / f"test_{part}.json", [{"imgname": "41.png", "query": f"What {part}?", "label": "14"}])
    picture(folder / "png" / "41.png")


def docvqa(folder: Path) -> None:
    row = {
        "questionId": 49153,
        "question": "What is the \u2018actual\u2019 value?",
        "question_types": ["figure/diagram"],
        "image": "documents/pybv0228_81.png",
        "docId": 14465,
        "ucsf_document_id": "pybv0228",
        "ucsf_document_page_no": "81",
        "answers": ["0.28", "0,28"],
        "data_split": "val",
    }
    head = {"dataset_name": "SP-DocVQA", "dataset_version": "1.0", "dataset_split": "val"}
    write_json(folder / "val_v1.0_withQT.json", {**head, "data": [row]})
    picture(folder / "documents" / "pybv0228_81.png")


def mmvet(folder: Path) -> None:
    row = {"imagename": "v1_0.png", "question": "What is x?", "answer": "-1<AND>-5", "capability": ["ocr", "math"]}
    write_json(folder / "mm-vet.json", {"v1_0": row})
    picture(folder / "images" / "v1_0.png")


def llava(folder: Path) -> None:
    rows = [
        {"question_id": 0, "image": "1.jpg", "text": "Which colour?", "category": "conv", "answer": "red"},
        {"question_id": 1, "image": "1.jpg", "text": "Which shape?", "category": "detail", "answers": ["disc", "ball"]},
    ]
    write_lines(folder / "questions.jsonl", rows)
    picture(folder / "images" / "1.jpg")


#: Set to what writes it, and how many questions of the first split it holds.
MAKERS: dict[str, tuple[Callable[[Path], None], int]] = {
    "vqav2": (vqav2, 2),
    "textvqa": (textvqa, 1),
    "gqa": (gqa, 1),
    "pope": (pope, 6),
    "mme": (mme, 28),
    "mmbench": (mmbench, 5),
    "scienceqa": (scienceqa, 1),
    "mmmu": (mmmu, 2),
    "seedbench": (seedbench, 1),
    "ocrbench": (ocrbench, 2),
    "naturalbench": (naturalbench, 4),
    "chartqa": (chartqa, 2),
    "docvqa": (docvqa, 1),
    "mmvet": (mmvet, 1),
    "llava": (llava, 2),
}
