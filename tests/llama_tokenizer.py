"""A tokenizer in the form of Llama's and Llama 2's: SentencePiece's BPE with byte fallback, as a `tokenizer.json`.

The vocabulary is trained; order of the pieces and merges are what transformers makes of a SentencePiece model: a merge
for each way of splitting a piece, pieces by falling score.
"""

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from edgevlm.zoo.tokenizer import _corpus

CONTROL = ("<unk>", "<s>", "</s>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
SPACE = "\u2581"


def build_llama_tokenizer(
    pieces: int = 700, special: Sequence[str] = ("<image>",), scheme: str = "legacy"
) -> Tokenizer:
    """Deterministic; `scheme` is how a leading space is added: `legacy` (before each text), or Metaspace's `first`."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=pieces, show_progress=False)
    learned.train_from_iterator(_corpus(), trainer)
    ranked = sorted(learned.get_vocab().items(), key=lambda item: item[1])
    merged = [piece for piece, _ in ranked if len(piece) > 1]
    single = [piece for piece, _ in ranked if len(piece) == 1]
    vocabulary = {piece: index for index, piece in enumerate((*CONTROL, *BYTES, *merged, *single))}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, all_splits(merged, vocabulary), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if scheme == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*CONTROL, *special)])
    return tokenizer


def all_splits(merged: Sequence[str], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, pieces in order."""
    merges = []
    for piece in merged:
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [pair for pair in splits if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return merges
