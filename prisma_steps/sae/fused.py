"""Loss and gradients of a training batch on a CPU, without autograd's arrays of all latents of all tokens.

Matrices are multiplied by oneDNN, and what lies between the products is done in one pass by a compiled
kernel. A dictionary that keeps few latents a token is multiplied by those alone.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from prisma_steps.precision import ComputeDtype, has_bfloat16
from prisma_steps.sae import kernels, sparse_kernels
from prisma_steps.sae.autoencoder import Autoencoder
from prisma_steps.sae.buffers import Buffers
from prisma_steps.sae.fused_pass import Codes, FusedGradients, Pass
from prisma_steps.sae.relu import ReLUAutoencoder
from prisma_steps.sae.threads import array, in_parallel
from prisma_steps.sae.topk import TopKAutoencoder

#: The share of latents that fire up to which it is faster to go through them than to multiply whole matrices.
_SPARSE = {torch.float32: 1 / 25, torch.bfloat16: 1 / 80}


class ReLUGradients(FusedGradients):
    """Of a ReLU autoencoder with an L1 penalty: by whole products, unless few latents fire."""

    autoencoder: ReLUAutoencoder

    def _pass(
        self, centred: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"], sparsity_scale: float
    ) -> Pass:
        """Whichever way is faster for how many latents fire on this batch."""
        latents = self._latents(centred)
        per_token = sparsity_scale * self.autoencoder.l1_coefficient / len(y)
        counts = torch.empty(len(y), dtype=torch.int64)
        in_parallel(sparse_kernels.count, len(y), latents, counts)
        fired = int(array(counts).sum())
        if fired > _SPARSE[self.dtype] * latents.numel():
            return self._dense_pass(centred, y, latents, per_token)
        starts = array(counts).cumsum() - array(counts)
        indices = self._buffers.get("indices", fired, dtype=torch.int32)
        values = self._buffers.get("values", fired)
        in_parallel(sparse_kernels.compress, len(y), latents, starts, indices, values)
        codes = Codes(torch.from_numpy(starts), torch.from_numpy(starts) + counts, indices, values)
        return self._sparse_pass(centred, y, codes, per_token)

    def _dense_pass(
        self,
        centred: Float[Tensor, "token d_in"],
        y: Float[Tensor, "token d_out"],
        latents: Float[Tensor, "token latent"],
        per_token: float,
    ) -> Pass:
        """Four products more, and one pass over the latents and their gradients."""
        n_latents, decoder = latents.shape[1], self._rows("W_dec")
        y_hat = self._product("reconstruction", latents, decoder)
        gradient, errors = self._error_buffers(y)
        b_dec = self.autoencoder.b_dec.detach()
        in_parallel(kernels.residuals, len(y), y, y_hat, b_dec, np.float32(2 / len(y)), gradient, errors)
        slopes = self._product("slopes", gradient, decoder.T)
        firings, activity = torch.empty(n_latents, dtype=torch.int32), torch.empty(n_latents)
        sums = (firings, activity, bias := self._buffers.get("bias", n_latents))
        in_parallel(kernels.mask, n_latents, latents, slopes, np.float32(per_token), *sums, least=1024)
        of_decoder = self._latent_by_latent("decoder", latents, gradient)
        of_encoder = self._latent_by_latent("encoder", slopes, centred)
        penalty = per_token * array(activity).sum(dtype=np.float64)
        return Pass(gradient, errors, penalty, firings.long(), of_encoder, of_decoder, bias)

    def _product(
        self, name: str, left: Float[Tensor, "n m"], right: Float[Tensor, "m k"]
    ) -> Float[Tensor, "n k"]:
        if self.dtype is torch.float32 and not _mkl_is_fast():
            if not right.T.is_contiguous():
                right = self._transposed("by column", right).T
            return torch.ops.mkldnn._linear_pointwise(left, right.T, None, "none", [], "")
        out = self._buffers.get(name, len(left), right.shape[1], dtype=self.dtype)
        return torch.mm(left, right, out=out)

    def _latent_by_latent(
        self, name: str, latents: Float[Tensor, "token latent"], tokens: Float[Tensor, "token d"]
    ) -> Float[Tensor, "latent d"]:
        """Σ_token latent · token."""
        if self.dtype is torch.float32:
            out = self._buffers.get(name, latents.shape[1], tokens.shape[1])
            return torch.mm(latents.T, tokens, out=out)
        # To lay latents out anew for oneDNN's bfloat16 kernel takes longer than to do so with the outcome.
        by_coordinate = self._transposed("by coordinate", tokens)
        product = torch.ops.mkldnn._linear_pointwise(by_coordinate, latents.T, None, "none", [], "")
        return self._transposed(name, product)

    def _transposed(self, name: str, matrix: Float[Tensor, "n m"]) -> Float[Tensor, "m n"]:
        transposed = self._buffers.get(name, *matrix.T.shape, dtype=matrix.dtype)
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
        latents, n, k = self._latents(centred), len(y), self.autoencoder.k
        codes = Codes(
            torch.arange(n) * k,
            torch.empty(n, dtype=torch.int64),
            self._buffers.get("indices", n * k, dtype=torch.int32),
            self._buffers.get("values", n * k),
        )
        bits = latents.view(torch.int32 if self.dtype is torch.float32 else torch.int16)
        in_parallel(sparse_kernels.select, n, bits, latents, k, *codes[1:])
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
