"""4-bit weights during training: the forward pass sees rounded decoder weights, the backward pass the real ones.

In: a model. Out: its decoder matrices as they would be after round-to-nearest int4, differentiable straight through
(arXiv 1308.3432), for `torch.func.functional_call`.
"""

from torch import Tensor, nn

GROUP_SIZE = 128


def fake_int4(weight: Tensor, group_size: int = GROUP_SIZE) -> Tensor:
    """Symmetric 4-bit round-to-nearest in groups of `group_size` along the input channels; keeps the shape [O, I]."""
    grouped = weight.detach().reshape(weight.shape[0], -1, group_size)
    scale = grouped.abs().amax(-1, keepdim=True).clamp(min=1e-8) / 7
    rounded = (grouped / scale).round().clamp(-8, 7) * scale
    return weight + (rounded.reshape(weight.shape) - weight).detach()


def fake_int4_decoder(model: nn.Module) -> dict[str, Tensor]:
    """The decoder's matrices (embedding and head included) with rounded values, by parameter name."""
    return {
        name: fake_int4(parameter)
        for name, parameter in model.named_parameters()
        if name.startswith("decoder.") and parameter.dim() == 2 and parameter.shape[1] % GROUP_SIZE == 0
    }
