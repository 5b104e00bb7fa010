"""Each method that merges tokens against its formula, token by token in numpy."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from reducer_models import CLIP, SIGLIP, attention, highest, reducer, rows, taps, vision_spec
from torch import Tensor

from edgevlm.models.taps import Taps
from edgevlm.spec import VitSpec

Array = NDArray[np.float64]
NONE = Taps(())


def features(seed: int = 1, channels: int = 12) -> Tensor:
    return torch.randn(2, 36, channels, generator=torch.Generator().manual_seed(seed))


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def close(found: Tensor, wanted: list[list[Array]]) -> None:
    np.testing.assert_allclose(found.numpy(), np.array(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoder", [CLIP, SIGLIP], ids=["clip", "siglip"])
def test_visionzip_adds_the_mean_of_what_goes_to_a_target(encoder: VitSpec) -> None:
    """Of 16 tokens 2 are contextual; with a class token 13 dominant patches stand behind it, else 14."""
    first = int(encoder.class_token)
    seen, x = taps((-1,), 36 + first), features()
    weights = attention(seen.found[-1])
    scores = weights[:, :, 0, 1:].sum(1) if first else weights.mean((1, 2))
    keys = rows(seen.found[-1].key.mean(1))[:, first:]
    assert seen.class_feature is not None
    wanted = []
    for image, row, key, own in zip(rows(x), scores, keys, rows(seen.class_feature), strict=True):
        dominant = highest(row, 14 - first)
        rest = [index for index in range(36) if index not in dominant]
        targets = rest[:: len(rest) // 2][:2]
        groups: dict[int, list[Array]] = {target: [] for target in targets}
        for index in rest:
            if index not in targets:
                groups[max(targets, key=lambda target: cosine(key[index], key[target]))].append(image[index])
        contextual = [image[target] + np.mean(group, axis=0) for target, group in groups.items()]
        wanted.append([*([own[0]] if first else []), *image[dominant], *contextual])
    close(reducer("visionzip", vision_spec(encoder), 16, contextual=2)(x, seen), wanted)


def test_visionzip_shares_its_tokens_as_published() -> None:
    for keep, contextual in ((64, 10), (128, 20), (192, 30)):
        made = reducer("visionzip", vision_spec(CLIP, side=24), keep)
        assert (made.merged, made.dominant) == (contextual, keep - contextual - 1)


@pytest.mark.parametrize("plus", [False, True])
def test_prumerge_adds_the_likest_others_by_their_attention(plus: bool) -> None:
    seen, x = taps((-1,), 37), features()
    query, key = (rows(part.transpose(1, 2).flatten(2)) for part in seen.found[-1])
    wanted = []
    for image, q, k in zip(rows(x), query, key, strict=True):
        scores = np.exp(k @ q[0] / np.sqrt(32))
        weight, k = (scores / scores.sum())[1:], k[1:]
        kept = highest(weight, 2 if plus else 8)
        if plus:
            left = [index for index in range(36) if index not in kept]
            kept = sorted([*kept, *(left[(2 * place + 1) * len(left) // 12] for place in range(6))])
        rest = [index for index in range(36) if index not in kept]
        tokens = [
            image[index] + sum(weight[o] * image[o] for o in sorted(rest, key=lambda o: -cosine(k[index], k[o]))[:32])
            for index in kept
        ]
        wanted.append([*tokens, sum(weight[o] * image[o] for o in rest)])
    close(reducer("prumerge", vision_spec(CLIP), 9, plus=plus)(x, seen), wanted)


def test_prumerge_adds_no_more_than_32_others() -> None:
    """Of 64 tokens 4 are kept, so that most of the 60 others are not among the 32 likest of a kept one."""
    seen, spec = taps((-1,), 65), vision_spec(CLIP, side=8)
    x = torch.ones(2, 64, 3)
    query, key = (rows(part.transpose(1, 2).flatten(2)) for part in seen.found[-1])
    scores = np.exp(key @ query[:, 0, :, None] / np.sqrt(32))[..., 0]
    weight = (scores / scores.sum(1, keepdims=True))[:, 1:]
    found = reducer("prumerge", spec, 5)(x, seen)[..., 0].numpy()
    for image in range(2):
        rest = sorted(set(range(64)) - set(highest(weight[image], 4)))
        all_of_them = 1 + weight[image][rest].sum()
        assert (found[image, :4] < all_of_them - 1e-3).all()
        assert found[image, 4] == pytest.approx(all_of_them - 1, rel=1e-4)


def merged_in_pairs(image: Array, keep: int, *, weighted: bool) -> list[Array]:
    """Bipartite merging by its definition: tokens with how many patches are in each."""
    tokens = [(row, 1) for row in image]
    while len(tokens) > keep:
        even, odd = tokens[::2], tokens[1::2]
        likest = [max(range(len(odd)), key=lambda j: cosine(a[0], odd[j][0])) for a in even]
        pairs = sorted(range(len(even)), key=lambda i: -cosine(even[i][0], odd[likest[i]][0]))
        gone = set(pairs[: min(len(tokens) - keep, len(tokens) // 2)])
        groups = [[token, *(even[i] for i in sorted(gone) if likest[i] == j)] for j, token in enumerate(odd)]
        means = []
        for group in groups:
            sizes = [size if weighted else 1 for _, size in group]
            mean = np.average([row for row, _ in group], axis=0, weights=sizes)
            means.append((mean, sum(size for _, size in group)))
        tokens = [*(token for i, token in enumerate(even) if i not in gone), *means]
    return [row for row, _ in tokens]


@pytest.mark.parametrize(("name", "weighted"), [("tome", True), ("aim-merge", False)])
@pytest.mark.parametrize("keep", [30, 18, 7])
def test_likest_pairs_are_merged_until_few_are_left(name: str, weighted: bool, keep: int) -> None:
    x = features(channels=4)
    wanted = [merged_in_pairs(image, keep, weighted=weighted) for image in rows(x)]
    close(reducer(name, vision_spec(CLIP), keep)(x, NONE), wanted)


def test_clusters_are_the_means_of_their_nearest_tokens() -> None:
    """Six tight groups: every start finds them, and they come in the order of their first tokens."""
    generator = torch.Generator().manual_seed(7)
    belongs = torch.randperm(36, generator=generator) % 6
    x = (4 * torch.randn(6, 8, generator=generator))[belongs] + 0.1 * torch.randn(36, 8, generator=generator)
    order = list(dict.fromkeys(belongs.tolist()))
    wanted = [[rows(x)[belongs.numpy() == group].mean(0) for group in order]]
    close(reducer("cluster", vision_spec(CLIP), 6)(x[None], NONE), wanted)


def test_clusters_of_loose_tokens_follow_lloyds_steps() -> None:
    x = features(channels=4)
    wanted = []
    for image in rows(x):
        apart = np.linalg.norm(image[:, None] - image, axis=-1)
        start = [int(np.sort(apart, axis=1)[:, 1].argmax())]
        while len(start) < 9:
            start.append(int(np.where(np.isin(range(36), start), -1, apart[start].min(0)).argmax()))
        centres = image[sorted(start)]
        for _ in range(3):
            nearest = np.linalg.norm(image[:, None] - centres, axis=-1).argmin(1)
            centres = np.array([image[nearest == c].mean(0) if (nearest == c).any() else centres[c] for c in range(9)])
        first = [np.flatnonzero(nearest == c)[0] if (nearest == c).any() else 36 for c in range(9)]
        wanted.append(list(centres[np.argsort(first, kind="stable")]))
    close(reducer("cluster", vision_spec(CLIP), 9, iterations=3)(x, NONE), wanted)
