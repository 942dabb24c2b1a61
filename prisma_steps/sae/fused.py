"""Loss and gradients of a training batch on a CPU, without autograd's arrays of all latents of all tokens.

Matrices are multiplied by oneDNN, and what lies between the products is done in one pass by a compiled
kernel. A dictionary that keeps few latents a token is multiplied by those alone.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from prisma_steps.precision import ComputeDtype, has_bfloat16
from prisma_steps.sae import kernels, sparse_kernels
from prisma_steps.sae.autoencoder import Autoencoder
from prisma_steps.sae.buffers import Buffers
from prisma_steps.sae.fused_pass import Codes, FusedGradients, Pass
from prisma_steps.sae.relu import ReLUAutoencoder
from prisma_steps.sae.topk import TopKAutoencoder
from prisma_steps.threads import array, in_parallel

#: The share of latents that fire up to which it is faster to go through them than to multiply whole matrices.
_SPARSE = {torch.float32: 1 / 25, torch.bfloat16: 1 / 80}
#: Tokens of a batch from which that share is estimated.
_SAMPLE = 64


class ReLUGradients(FusedGradients):
    """Of a ReLU autoencoder with an L1 penalty: by whole products, unless few latents fire."""

    autoencoder: ReLUAutoencoder

    def _pass(
        self, centred: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"], sparsity_scale: float
    ) -> Pass:
        """Whichever way is faster for how many latents fire on the first tokens."""
        per_token = sparsity_scale * self.autoencoder.l1_coefficient / len(y)
        first = self._latents(centred[:_SAMPLE])
        fired = int(array(self._counts(first)).sum())
        if fired > _SPARSE[self.dtype] * first.numel():
            return self._dense_pass(centred, y, per_token)
        return self._sparse_pass(centred, y, self._compressed(centred), per_token)

    def _counts(self, latents: Float[Tensor, "token latent"]) -> Int[Tensor, " token"]:
        counts = torch.empty(len(latents), dtype=torch.int64)
        in_parallel(sparse_kernels.count, len(latents), latents, counts)
        return counts

    def _compressed(self, centred: Float[Tensor, "token d_in"]) -> Codes:
        """The latents that fire."""
        made = []
        for chunk in self._chunks(centred):
            latents = self._latents(centred[chunk])
            counts = self._counts(latents)
            starts, fired = counts.cumsum(0) - counts, int(array(counts).sum())
            indices, values = torch.empty(fired, dtype=torch.int32), torch.empty(fired)
            in_parallel(sparse_kernels.compress, len(latents), latents, starts, indices, values)
            del latents  # its memory is that of the next chunk's
            made.append((counts, indices, values))
        counts, indices, values = map(torch.cat, zip(*made, strict=True))
        stops = counts.cumsum(0)
        return Codes(stops - counts, stops, indices, values)

    def _dense_pass(
        self, centred: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"], per_token: float
    ) -> Pass:
        """Four products more, and one pass over the latents and their gradients, some tokens at a time."""
        n_latents = self.autoencoder.shape.n_latents
        gradient, errors = self._error_buffers(y)
        rows, by_column = self._rows("W_dec"), self._by_column("W_dec")
        decoder, encoder = (_Sums(name, self._buffers) for name in ("decoder", "encoder"))
        firings, activity = torch.zeros(n_latents, dtype=torch.int64), torch.zeros(n_latents)
        bias = self._buffers.get("bias", n_latents).zero_()
        for chunk in self._chunks(centred):
            tokens = centred[chunk]
            latents = self._latents(tokens)
            y_hat = self._product("reconstruction", latents, by_column)
            numbers = (self.autoencoder.b_dec.detach(), np.float32(2 / len(y)))
            parts = (y[chunk], y_hat, *numbers, gradient[chunk], errors[chunk])
            in_parallel(kernels.residuals, len(tokens), *parts)
            slopes = self._product("slopes", gradient[chunk], rows.T)
            sums = (torch.empty(n_latents, dtype=torch.int32), torch.empty(n_latents), torch.empty(n_latents))
            in_parallel(kernels.mask, n_latents, latents, slopes, np.float32(per_token), *sums, least=1024)
            for total, added in zip((firings, activity, bias), sums, strict=True):
                total += added
            decoder.add(latents, gradient[chunk])
            encoder.add(slopes, tokens)
            del latents  # its memory is that of the next chunk's
        penalty = per_token * array(activity).sum(dtype=np.float64)
        of_decoder = decoder.total("decoder")
        of_encoder = encoder.total(decoder.memory)
        return Pass(gradient, errors, penalty, firings, of_encoder, of_decoder, bias)

    def _product(
        self, name: str, left: Float[Tensor, "n m"], right: Float[Tensor, "m k"]
    ) -> Float[Tensor, "n k"]:
        if self.dtype is torch.float32 and not _mkl_is_fast():
            return torch.ops.mkldnn._linear_pointwise(left, right.T, None, "none", [], "")
        out = self._buffers.get(name, len(left), right.shape[1], dtype=self.dtype)
        return torch.mm(left, right, out=out)

    def _by_column(self, name: str) -> Float[Tensor, "latent d"]:
        """A weight as the right factor of ``_product``."""
        rows = self._rows(name)
        if self.dtype is torch.float32 and not _mkl_is_fast():
            return _transposed(self._buffers, f"{name} by column", rows).T
        return rows


class _Sums:
    """Σ_token latent · token over the chunks of a batch, in memory that the next batch uses again."""

    def __init__(self, name: str, buffers: Buffers) -> None:
        """Nothing added yet."""
        self.memory = f"{name} by chunk"
        self._buffers = buffers
        self._sum: Tensor | None = None

    def add(self, latents: Float[Tensor, "token latent"], tokens: Float[Tensor, "token d"]) -> None:
        """Add the tokens of a chunk."""
        if latents.dtype is torch.float32:
            factors = (latents.T, tokens)
        else:  # to lay out latents anew for the product takes longer than to do so with the outcome
            factors = (_transposed(self._buffers, "by coordinate", tokens), latents)
        if self._sum is None:
            shape = (len(factors[0]), factors[1].shape[1])
            self._sum = self._buffers.get(self.memory, *shape, dtype=latents.dtype)
            torch.mm(*factors, out=self._sum)
        else:
            self._sum.addmm_(*factors)

    def total(self, memory: str) -> Float[Tensor, "latent d"]:
        """The sum over all chunks, in its own memory or, where it is to be transposed, that of this name."""
        assert self._sum is not None
        if self._sum.dtype is torch.float32:
            return self._sum
        return _transposed(self._buffers, memory, self._sum)


def _transposed(buffers: Buffers, name: str, matrix: Float[Tensor, "n m"]) -> Float[Tensor, "m n"]:
    transposed = buffers.get(name, *matrix.T.shape, dtype=matrix.dtype)
    in_parallel(kernels.transpose, len(transposed), matrix, transposed, least=256)
    return transposed


class TopKGradients(FusedGradients):
    """Of a TopK autoencoder: after the encoder's product only the latents that fire are touched."""

    autoencoder: TopKAutoencoder

    def _pass(
        self,
        centred: Float[Tensor, "token d_in"],
        y: Float[Tensor, "token d_out"],
        sparsity_scale: float,  # noqa: ARG002
    ) -> Pass:
        """The encoder's product, the selection, and the rest latent by latent."""
        n, k = len(y), self.autoencoder.k
        starts, counts = torch.arange(n) * k, torch.empty(n, dtype=torch.int64)
        indices = self._buffers.get("indices", n, k, dtype=torch.int32)
        values = self._buffers.get("values", n, k)
        for chunk in self._chunks(centred):
            latents = self._latents(centred[chunk])
            bits = latents.view(torch.int32 if self.dtype is torch.float32 else torch.int16)
            parts = (counts[chunk], indices[chunk], values[chunk])
            in_parallel(sparse_kernels.select, len(latents), bits, latents, k, *parts)
            del latents, bits  # their memory is that of the next chunk's
        codes = Codes(starts, starts + counts, indices.flatten(), values.flatten())
        return self._sparse_pass(centred, y, codes, 0.0)


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
        ReLUAutoencoder: ReLUGradients,
        TopKAutoencoder: TopKGradients,
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


@cache
def _mkl_is_fast() -> bool:
    """Whether MKL, which PyTorch multiplies float32 with, uses all of this processor: Intel's have AMX."""
    return torch.cpu._is_amx_tile_supported() or torch.backends.cpu.get_cpu_capability() != "AVX512"
