"""What all fused gradients share: weights as they are multiplied, and the sparse way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prisma_steps.sae import kernels, sparse_kernels
from prisma_steps.sae.autoencoder import Autoencoder, Objective, dead_error
from prisma_steps.sae.buffers import Buffers
from prisma_steps.threads import array, in_parallel

#: Bytes of latents that are computed before anything is done with them: a fraction of those of a batch, but
#: enough for products at full speed.
_CHUNK = 12 * 2**20


class Codes(NamedTuple):
    """Sparse latents of a batch.

    Attributes:
        starts: first slot of each token.
        stops: the slot after its last.
        indices: latent of each slot.
        values: how large it is.
    """

    starts: Int[Tensor, " token"]
    stops: Int[Tensor, " token"]
    indices: Int[Tensor, " slot"]
    values: Float[Tensor, " slot"]


class Pass(NamedTuple):
    """What a pass forward and back leaves. Tensors are buffers: the next batch overwrites them.

    Attributes:
        error_gradient: ∂loss/∂ŷ of the reconstruction.
        errors: ‖y − ŷ‖² of each token.
        penalty: what the loss adds for sparsity.
        firings: tokens on which each latent is active.
        encoder: gradient of W_enc, a latent a row, rounded as what is multiplied.
        decoder: gradient of W_dec, likewise.
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
    what else runs changes a bit of what the kernels compute; a product's sum may be split by the number of
    threads.

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

    def _chunks(self, x: Float[Tensor, "token d_in"]) -> list[slice]:
        """Tokens of which all latents are in memory at once."""
        of_token = self.autoencoder.shape.n_latents * self.dtype.itemsize
        size = -(-len(x) // -(-len(x) * of_token // _CHUNK))
        return [slice(first, first + size) for first in range(0, len(x), size)]

    def _centred(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_in"]:
        centred = self._buffers.get("centred", *x.shape, dtype=self.dtype)
        if not self.autoencoder.subtracts_b_dec:
            return centred.copy_(x)
        for chunk in self._chunks(x):  # in bfloat16 what is taken from is a copy in float32
            torch.sub(x[chunk], self.autoencoder.b_dec.detach(), out=centred[chunk])
        return centred

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

    def _sparse_pass(
        self,
        centred: Float[Tensor, "token d_in"],
        y: Float[Tensor, "token d_out"],
        codes: Codes,
        per_token: float,
    ) -> Pass:
        """All after the encoder, latent by latent; the loss adds ``per_token`` · Σ f."""
        gradient, errors = self._error_buffers(y)
        slopes = self._buffers.get("latent slopes", len(codes.values))
        b_dec = self.autoencoder.b_dec.detach()
        numbers = (np.float32(2 / len(y)), np.float32(per_token))
        parts = (*codes, self._rows("W_dec"), b_dec, y, *numbers, gradient, errors, slopes)
        in_parallel(sparse_kernels.decode, len(y), *parts)
        n_latents = self.autoencoder.shape.n_latents
        offsets = torch.empty(n_latents + 1, dtype=torch.int64)
        slots = self._buffers.get("slots", len(slopes), dtype=torch.int32)
        tokens = self._buffers.get("tokens", len(slopes), dtype=torch.int32)
        order = (offsets, slots, tokens)
        sparse_kernels.group(*map(array, (codes.starts, codes.stops, codes.indices, *order)))
        encoder = self._buffers.get("encoder", n_latents, centred.shape[1], dtype=self.dtype)
        decoder = self._buffers.get("decoder", n_latents, y.shape[1], dtype=self.dtype)
        bias, activity = self._buffers.get("bias", n_latents), torch.empty(n_latents)
        in_parallel(sparse_kernels.outer_sums, n_latents, *order, codes.values, gradient, decoder)
        in_parallel(sparse_kernels.outer_sums, n_latents, *order, slopes, centred, encoder)
        in_parallel(sparse_kernels.sums_by_latent, n_latents, offsets, slots, slopes, bias, least=1024)
        in_parallel(
            sparse_kernels.sums_by_latent, n_latents, offsets, slots, codes.values, activity, least=1024
        )
        penalty = per_token * array(activity).sum(dtype=np.float64)
        return Pass(gradient, errors, penalty, offsets.diff(), encoder, decoder, bias)

    def _error_buffers(
        self, y: Float[Tensor, "token d_out"]
    ) -> tuple[Float[Tensor, "token d_out"], Float[Tensor, " token"]]:
        return self._buffers.get("error", *y.shape, dtype=self.dtype), torch.empty(len(y))


def _sum_columns(weights: Float[Tensor, " n"], rows: Float[Tensor, "n d"], sums: Float[Tensor, " d"]) -> None:
    in_parallel(kernels.column_sums, len(sums), weights, rows, sums, least=256)
