"""What a dictionary starts from: the scale and the centre of the activations."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from prisma_steps.sae.autoencoder import Autoencoder
from prisma_steps.sae.normalisation import Normalisation, Normalise
from prisma_steps.seeding import torch_generator
from prisma_steps.step import StepError

#: Tokens that scale and centre are estimated from, at most.
SAMPLE_TOKENS = 65_536


class Sample:
    """Tokens that stand for all, and what is estimated from them, for all dictionaries trained on them.

    Attributes:
        x: inputs, layers side by side.
        y: targets; ``x`` itself for what reconstructs its input.
    """

    def __init__(self, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"] | None = None) -> None:
        """Estimate from inputs ``x`` and, of a transcoder, targets ``y``, in the model's own space."""
        self.x = x.float()
        self.y = self.x if y is None else y.float()
        self._cached_centre = lru_cache(maxsize=None)(self._centre)

    def start(self, autoencoder: Autoencoder, b_dec_init: str, seed: int) -> Float[Tensor, " d_out"]:
        """Initialise a dictionary, normalisation included.

        Args:
            autoencoder: on the CPU.
            b_dec_init: where b_dec starts: "zeros", "mean" or "geometric_median" of the normalised targets.
            seed: of the directions.

        Returns:
            The mean of the normalised targets.

        Raises:
            StepError: when the activations are not finite, or all zero and to be scaled.
        """
        normalisation = autoencoder.normalisation
        self.set_factors(normalisation)
        factors = (*normalisation.norm_factor.tolist(), normalisation.target_norm_factor.item())
        how = (normalisation.normalise, normalisation.transcodes, factors)
        centre = self._cached_centre(b_dec_init, *how)
        autoencoder.initialise(centre, torch_generator(seed, "sae/directions"))
        return self._cached_centre("mean", *how)

    def set_factors(self, normalisation: Normalisation) -> None:
        """Set the factors that bring E‖x‖ of every layer, and E‖y‖ of a target, to the root of its width."""
        if normalisation.normalise == "expected_norm":
            layers = self.x.unflatten(1, (normalisation.n_layers, -1)).unbind(1)
            factors = [expected_norm_factor(layer) for layer in layers]
            normalisation.norm_factor.copy_(torch.tensor(factors))
        if normalisation.transcodes and normalisation.normalise != "none":
            normalisation.target_norm_factor.fill_(expected_norm_factor(self.y))

    def _centre(
        self, method: str, normalise: Normalise, transcodes: bool, factors: tuple[float, ...]
    ) -> Float[Tensor, " d_out"]:
        """A centre of the targets normalised by ``factors``, of the layers and of a transcoder's target."""
        n_layers = len(factors) - 1
        normalisation = Normalisation(normalise, n_layers, self.x.shape[1] // n_layers, transcodes=transcodes)
        normalisation.norm_factor.copy_(torch.tensor(factors[:-1]))
        normalisation.target_norm_factor.fill_(factors[-1])
        return centre(normalisation.place_target(self.y, normalisation.place(self.x)), method)


def expected_norm_factor(tokens: Float[Tensor, "token d_model"]) -> float:
    """The factor that brings the mean of ‖x‖ over ``tokens`` to √d_model.

    Raises:
        StepError: when the activations are not finite or all zero.
    """
    mean_norm = tokens.float().norm(dim=1).double().mean().item()
    if not 0 < mean_norm < float("inf"):
        raise StepError(
            f"the mean norm of the activations is {mean_norm}, which cannot be brought to √d_model: check "
            "the model that they are from"
        )
    return tokens.shape[1] ** 0.5 / mean_norm


def mean_token(tokens: Float[Tensor, "token d_model"]) -> Float[Tensor, " d_model"]:
    """Mean of ``tokens``, summed in float64."""
    return tokens.mean(0, dtype=torch.float64).to(torch.promote_types(tokens.dtype, torch.float32))


def geometric_median(
    tokens: Float[Tensor, "token d_model"], iterations: int = 100, tolerance: float = 1e-6
) -> Float[Tensor, " d_model"]:
    """The point with the least summed distance to ``tokens`` (Weiszfeld 1937).

    Args:
        tokens: a sample.
        iterations: the most fixed-point iterations.
        tolerance: relative change of the summed distance at which to stop.
    """
    median = tokens.mean(0)
    previous = float("inf")
    for _ in range(iterations):
        # A token on the median itself would weigh infinitely much.
        distance = torch.cdist(tokens, median[None]).squeeze(1).clamp_min(1e-12)
        total = distance.double().sum().item()
        if previous - total <= tolerance * total:
            break
        previous = total
        weight = 1 / distance
        median = weight @ tokens / weight.sum()
    return median


def centre(tokens: Float[Tensor, "token d_model"], method: str) -> Float[Tensor, " d_model"]:
    """The first b_dec, by ``method``: "zeros", "mean" or "geometric_median"."""
    if method == "zeros":
        return tokens.new_zeros(tokens.shape[1])
    return {"mean": mean_token, "geometric_median": geometric_median}[method](tokens)
