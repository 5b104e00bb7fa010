"""What a decoder costs by its numbers alone: parameters, operations of a prefill, bytes of its cache.

In: a `DecoderSpec`. Out: counts. A multiply-add counts as two operations. Only matrix products and attention are
counted; norms, activations and rotary embeddings are a hundredth of them.
"""

from __future__ import annotations

from edgevlm.spec import DecoderSpec


def layer_matrices(spec: DecoderSpec) -> tuple[tuple[int, int], ...]:
    """Rows and columns of the matrices of one layer."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    attention = (
        (spec.query_size, hidden),
        (spec.key_value_size, hidden),
        (spec.key_value_size, hidden),
        (hidden, spec.query_size),
    )
    mlp = ((inner, hidden),) * (2 if spec.mlp == "swiglu" else 1)
    return (*attention, *mlp, (hidden, inner))


def layer_parameters(spec: DecoderSpec) -> int:
    """Weights of the matrices of one layer; vectors are not counted."""
    return sum(rows * columns for rows, columns in layer_matrices(spec))


def embedding_parameters(spec: DecoderSpec) -> int:
    """Weights of the embedding, and of a head of the same size where it is not the embedding itself."""
    return spec.vocab_size * spec.hidden_size


def prefill_flops(spec: DecoderSpec, image_tokens: int, text_tokens: int, images: int = 1) -> float:
    """Operations of one forward pass over a prompt, with the head for its last position alone.

    Image tokens that are dropped on the way (`spec.token_drop`) do not reach the layers behind.

    Args:
        spec: of the decoder.
        image_tokens: positions of each image in front of the first layer.
        text_tokens: all other positions.
        images: in the prompt.
    """
    total = 2.0 * embedding_parameters(spec)
    for layer in range(spec.num_hidden_layers):
        length = text_tokens + images * _entering(spec, layer, image_tokens)
        total += 2.0 * length * layer_parameters(spec) + attention_flops(spec, length)
    return total


def attention_flops(spec: DecoderSpec, length: int) -> float:
    """Operations of causal attention of one layer over `length` positions: two products of half a square."""
    return 2.0 * spec.query_size * length * (length + 1)


def cache_bytes(spec: DecoderSpec, image_tokens: int, positions: int, value_bytes: float, images: int = 1) -> float:
    """Bytes of keys and values at a context of `positions`, of which each image has `image_tokens` at the front.

    Args:
        spec: of the decoder.
        image_tokens: positions of each image in front of the first layer.
        positions: of the whole context.
        value_bytes: of one number in the cache.
        images: in the prompt.
    """
    total = 0.0
    for layer in range(spec.num_hidden_layers):
        dropped = images * (image_tokens - _entering(spec, layer, image_tokens))
        total += 2.0 * spec.key_value_size * max(positions - dropped, 0) * value_bytes
    return total


def prefill_scratch_bytes(spec: DecoderSpec, positions: int, value_bytes: float) -> float:
    """Bytes of a layer's activations: residual stream, projections and MLP at once, and one row of logits."""
    widths = 2 * spec.hidden_size + spec.query_size + 2 * spec.key_value_size
    widths += spec.intermediate_size * (2 if spec.mlp == "swiglu" else 1)
    return positions * widths * value_bytes + 4.0 * spec.vocab_size


def _entering(spec: DecoderSpec, layer: int, image_tokens: int) -> int:
    """Tokens of an image that enter a layer."""
    if spec.token_drop is None:
        return image_tokens
    return min(image_tokens, spec.token_drop.entering(spec.token_drop.part(layer)))
