"""Loss and gradients of a training batch on a CPU, without autograd's arrays of all latents of all tokens.

Matrices are multiplied by oneDNN, and what lies between the products is done in one pass by a compiled
kernel. A dictionary that keeps few latents a token is multiplied by those alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prisma_steps.models.fast_inference import ComputeDtype, has_bfloat16
from prisma_steps.sae import kernels
from prisma_steps.sae.autoencoder import Autoencoder, Objective, dead_error
from prisma_steps.sae.buffers import Buffers
from prisma_steps.sae.relu import ReLUAutoencoder
from prisma_steps.sae.threads import array, in_parallel
from prisma_steps.sae.topk import TopKAutoencoder


class Pass(NamedTuple):
    """What a pass forward and back leaves. Tensors are buffers: the next batch overwrites them.

    Attributes:
        error_gradient: ∂loss/∂ŷ of the reconstruction.
        errors: ‖y − ŷ‖² of each token.
        penalty: what the loss adds for sparsity.
        firings: tokens on which each latent is active.
        encoder: gradient of W_enc, a latent a row.
        decoder: gradient of W_dec.
        bias: gradient of b_enc.
    """

    error_gradient: Float[Tensor, "token d_out"]
    errors: Float[Tensor, " token"]
    penalty: float
    firings: Int[Tensor, " latent"]
    encoder: Float[Tensor, "latent d_in"]
    decoder: Float[Tensor, "latent d_out"]
    bias: Float[Tensor, " latent"]


class FusedGradients(ABC):
    """Gradients of an autoencoder or transcoder whose decoder rows have unit norm.

    They are those of ``Autoencoder.objective``, but for the penalty's part along decoder rows, which
    ``Autoencoder.constrain_gradient`` takes off. In bfloat16 weights, tokens, latents and errors are rounded
    to 8 significant bits where they are multiplied; sums are in float32. Neither the number of threads nor
    what else runs changes a bit of what the kernels compute; oneDNN may split a sum by the number of threads.

    Attributes:
        copies: weights as they are multiplied, a latent a row: rounded, or the weights themselves. Whoever
            changes the weights behind torch's back must change the copies too.
    """

    def __init__(self, autoencoder: Autoencoder, dtype: torch.dtype, buffers: Buffers) -> None:
        """Gradients of ``autoencoder`` as it is at each call."""
        self.autoencoder = autoencoder
        self.dtype = dtype
        self._buffers = buffers
        self._weights = {"W_enc": autoencoder.W_enc.detach().T, "W_dec": autoencoder.W_dec.detach()}
        rounded = dtype is not torch.float32
        self.copies = {name: weight.to(dtype) for name, weight in self._weights.items()} if rounded else {}
        self._versions = self._seen()

    def __call__(
        self,
        x: Float[Tensor, "token d_in"],
        y: Float[Tensor, "token d_out"],
        sparsity_scale: float,
        dead: Bool[Tensor, " latent"],
    ) -> tuple[Objective, dict[str, Tensor]]:
        """See ``Gradients``. The gradients' memory is used again by the next call."""
        self._follow()
        centred = self._centred(x)
        found = self._pass(centred, y, sparsity_scale)
        squared_error = array(found.errors).sum(dtype=np.float64) / len(x)
        sparsity = found.penalty
        if self.autoencoder.aux_k_coefficient and dead.any():
            sparsity += self._add_aux_k(centred, found, dead)
        error, penalty = (torch.tensor(value, dtype=torch.float32) for value in (squared_error, sparsity))
        gradients = {
            "W_enc": found.encoder.T,
            "W_dec": found.decoder,
            "b_enc": found.bias,
            "b_dec": self._b_dec_gradient(found),
        }
        return Objective(error + penalty, error, penalty, found.firings), gradients

    @abstractmethod
    def _pass(
        self, centred: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"], sparsity_scale: float
    ) -> Pass:
        """The objective without AuxK, and its gradients."""

    # --- weights as they are multiplied

    def _seen(self) -> list[int]:
        return [self.autoencoder.W_enc._version, self.autoencoder.W_dec._version]

    def _follow(self) -> None:
        """Round the weights anew if torch has changed them: loaded, resampled or constrained."""
        if self._versions != self._seen():
            for name, copy in self.copies.items():
                copy.copy_(self._weights[name])
            self._versions = self._seen()

    def _rows(self, name: str) -> Float[Tensor, "latent d"]:
        return self.copies.get(name, self._weights[name])

    # --- parts of a pass

    def _centred(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_in"]:
        centred = self._buffers.get("centred", *x.shape, dtype=self.dtype)
        if self.autoencoder.subtracts_b_dec:
            return torch.sub(x, self.autoencoder.b_dec.detach(), out=centred)
        return centred.copy_(x)

    def _latents(self, centred: Float[Tensor, "token d_in"]) -> Float[Tensor, "token latent"]:
        bias = self.autoencoder.encoder_bias.detach()
        return torch.ops.mkldnn._linear_pointwise(centred, self._rows("W_enc"), bias, "relu", [], "")

    def _b_dec_gradient(self, found: Pass) -> Float[Tensor, " d_out"]:
        ones = torch.ones(len(found.errors))
        gradient = self._buffers.get("b_dec", found.error_gradient.shape[1])
        _sum_columns(ones, found.error_gradient, gradient)
        if self.autoencoder.subtracts_b_dec:
            through_encoder = torch.empty_like(gradient)
            _sum_columns(found.bias, self._rows("W_enc"), through_encoder)
            gradient -= through_encoder
        return gradient

    def _add_aux_k(
        self, centred: Float[Tensor, "token d_in"], found: Pass, dead: Bool[Tensor, " latent"]
    ) -> float:
        """Add AuxK's gradients, by autograd over the dead latents alone; returns what it adds to the loss."""
        which = dead.nonzero().squeeze(1)
        names = ("W_enc", "W_dec")
        weights = [*(self._weights[name] for name in names), self.autoencoder.encoder_bias.detach()]
        encoder, decoder, bias = leaves = [weight[which].requires_grad_() for weight in weights]
        residual = found.error_gradient.float() * (-len(centred) / 2)
        rounded = self.dtype is not torch.float32
        with torch.enable_grad(), torch.autocast("cpu", self.dtype if rounded else None, enabled=rounded):
            error = dead_error(centred.float(), residual, encoder, bias, decoder)
            loss = self.autoencoder.aux_k_coefficient * error
        of_loss = torch.autograd.grad(loss, leaves)
        for gradient, added in zip((found.encoder, found.decoder, found.bias), of_loss, strict=True):
            gradient.index_add_(0, which, added.to(gradient.dtype))
        return loss.item()


class DenseGradients(FusedGradients):
    """Of a ReLU autoencoder with an L1 penalty: any number of latents fires on a token."""

    autoencoder: ReLUAutoencoder

    def _pass(
        self, centred: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"], sparsity_scale: float
    ) -> Pass:
        """Five products, and one pass over the latents and their gradients."""
        n, n_latents = len(y), self.autoencoder.shape.n_latents
        latents = self._latents(centred)
        error_gradient, errors = self._residuals(latents, y)
        slopes = _product(error_gradient, self._rows("W_dec"))
        firings = torch.empty(n_latents, dtype=torch.int32)
        activity, bias = torch.empty(n_latents), self._buffers.get("bias", n_latents)
        per_token = sparsity_scale * self.autoencoder.l1_coefficient / n
        sums = (firings, activity, bias)
        in_parallel(kernels.mask, n_latents, latents, slopes, np.float32(per_token), *sums, least=1024)
        decoder = self._latent_by_latent("decoder", error_gradient, latents)
        encoder = self._latent_by_latent("encoder", centred, slopes)
        penalty = per_token * array(activity).sum(dtype=np.float64)
        return Pass(error_gradient, errors, penalty, firings.long(), encoder, decoder, bias)

    def _residuals(
        self, latents: Float[Tensor, "token latent"], y: Float[Tensor, "token d_out"]
    ) -> tuple[Float[Tensor, "token d_out"], Float[Tensor, " token"]]:
        columns = self._rows("W_dec").T
        if self.dtype is torch.float32:
            columns = self._transposed("decoder by column", self._rows("W_dec"))
        y_hat = _product(latents, columns)
        gradient, errors = self._buffers.get("error", *y.shape, dtype=self.dtype), torch.empty(len(y))
        b_dec = self.autoencoder.b_dec.detach()
        in_parallel(kernels.residuals, len(y), y, y_hat, b_dec, np.float32(2 / len(y)), gradient, errors)
        return gradient, errors

    def _latent_by_latent(
        self, name: str, tokens: Float[Tensor, "token d"], latents: Float[Tensor, "token latent"]
    ) -> Float[Tensor, "latent d"]:
        """Σ_token latent · token. oneDNN is fastest where it makes the transposed matrix."""
        by_coordinate = self._transposed("tokens by coordinate", tokens)
        return self._transposed(name, _product(by_coordinate, latents.T))

    def _transposed(self, name: str, matrix: Float[Tensor, "n m"]) -> Float[Tensor, "m n"]:
        transposed = self._buffers.get(name, *matrix.T.shape, dtype=matrix.dtype)
        in_parallel(kernels.transpose, len(transposed), matrix, transposed, least=32)
        return transposed


class SparseGradients(FusedGradients):
    """Of a TopK autoencoder: after the encoder's product only the latents that fire are touched."""

    autoencoder: TopKAutoencoder

    def _pass(
        self,
        centred: Float[Tensor, "token d_in"],
        y: Float[Tensor, "token d_out"],
        sparsity_scale: float,  # noqa: ARG002
    ) -> Pass:
        """The encoder's product, and the rest latent by latent."""
        starts, stops, indices, values = self._select(self._latents(centred))
        gradient, errors = self._buffers.get("error", *y.shape, dtype=self.dtype), torch.empty(len(y))
        slopes = self._buffers.get("slopes", len(values))
        in_parallel(
            kernels.decode,
            len(y),
            *(starts, stops, indices, values),
            self._rows("W_dec"),
            self.autoencoder.b_dec.detach(),
            *(y, np.float32(2 / len(y)), np.float32(0)),
            *(gradient, errors, slopes),
        )
        n_latents = self.autoencoder.shape.n_latents
        offsets = torch.empty(n_latents + 1, dtype=torch.int64)
        slots = self._buffers.get("slots", len(values), dtype=torch.int32)
        tokens = self._buffers.get("tokens", len(values), dtype=torch.int32)
        kernels.group(*map(array, (starts, stops, indices, offsets, slots, tokens)))
        order = (offsets, slots, tokens)
        encoder = self._buffers.get("encoder", n_latents, centred.shape[1])
        decoder = self._buffers.get("decoder", n_latents, y.shape[1])
        bias = self._buffers.get("bias", n_latents)
        in_parallel(kernels.outer_sums, n_latents, *order, values, gradient, decoder)
        in_parallel(kernels.outer_sums, n_latents, *order, slopes, centred, encoder)
        in_parallel(kernels.sums_by_latent, n_latents, offsets, slots, slopes, bias, least=1024)
        return Pass(gradient, errors, 0.0, offsets.diff(), encoder, decoder, bias)

    def _select(self, latents: Float[Tensor, "token latent"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where each token's latents start and stop, which they are, and how large."""
        n, k = len(latents), self.autoencoder.k
        starts, stops = torch.arange(n) * k, torch.empty(n, dtype=torch.int64)
        indices = self._buffers.get("indices", n * k, dtype=torch.int32)
        values = self._buffers.get("values", n * k)
        bits = latents.view(torch.int32 if self.dtype is torch.float32 else torch.int16)
        in_parallel(kernels.select, n, bits, latents, k, stops, indices, values)
        return starts, stops, indices, values


def fused_gradients(
    autoencoder: Autoencoder, dtype: ComputeDtype, buffers: Buffers | None = None
) -> FusedGradients | None:
    """The fast way to an autoencoder's gradients, or None where there is none.

    There is one of ReLU and TopK on a CPU with oneDNN, with decoder rows of unit norm and without a linear
    skip; of ReLU not of a crosscoder, whose penalty has a norm a layer; in bfloat16 where the processor has
    it; in float32 unless oneDNN was told to take fewer digits for it.

    Args:
        autoencoder: whose weights are read at every call.
        dtype: what matrices are multiplied in.
        buffers: shared by autoencoders that take turns.
    """
    ways: dict[type[Autoencoder], type[FusedGradients]] = {
        ReLUAutoencoder: DenseGradients,
        TopKAutoencoder: SparseGradients,
    }
    way = ways.get(type(autoencoder))
    if way is None or not _applies(autoencoder, dtype):
        return None
    return way(autoencoder, getattr(torch, dtype), Buffers() if buffers is None else buffers)


def _applies(autoencoder: Autoencoder, dtype: ComputeDtype) -> bool:
    shape, weight = autoencoder.shape, autoencoder.W_dec
    if weight.device.type != "cpu" or weight.dtype is not torch.float32 or not shape.unit_norm or shape.skip:
        return False
    if isinstance(autoencoder, ReLUAutoencoder) and shape.n_layers > 1:
        return False
    if not torch.backends.mkldnn.is_available():
        return False
    precision = torch.backends.mkldnn.matmul.fp32_precision  # pyright: ignore[reportAttributeAccessIssue]
    return has_bfloat16() if dtype == "bfloat16" else precision in ("none", "ieee")


def _product(left: Float[Tensor, "n m"], right: Float[Tensor, "k m"]) -> Float[Tensor, "n k"]:
    """``left`` · ``right``ᵀ by oneDNN, in the precision of the two."""
    return torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")


def _sum_columns(weights: Float[Tensor, " n"], rows: Float[Tensor, "n d"], sums: Float[Tensor, " d"]) -> None:
    in_parallel(kernels.column_sums, len(sums), weights, rows, sums, least=256)
