"""Every architecture written out a token and a latent at a time, in float64 NumPy."""

from __future__ import annotations

import numpy as np

from prisma_steps.sae.autoencoder import Autoencoder
from tests.sae.dictionaries import SETTINGS, K

Weights = dict[str, np.ndarray]


def weights_of(sae: Autoencoder) -> Weights:
    return {name: tensor.detach().numpy().copy() for name, tensor in sae.state_dict().items()}


def pre_activations(sae: Autoencoder, w: Weights, x: np.ndarray) -> np.ndarray:
    """[token, latent]"""
    bias = w["b_gate"] if sae.architecture == "gated" else w["b_enc"]
    shift = w["b_dec"] if sae.shape.kind == "autoencoder" else np.zeros(x.shape[1])
    made = np.zeros((len(x), w["W_enc"].shape[1]))
    for t, j in np.ndindex(made.shape):
        made[t, j] = sum((x[t, i] - shift[i]) * w["W_enc"][i, j] for i in range(x.shape[1])) + bias[j]
    return made


def latents(sae: Autoencoder, w: Weights, pre: np.ndarray, *, of_a_batch: bool = False) -> np.ndarray:
    made = np.zeros_like(pre)
    for t, j in np.ndindex(pre.shape):
        made[t, j] = _latent(sae, w, pre, t, j, of_a_batch=of_a_batch)
    return made


def _latent(sae: Autoencoder, w: Weights, pre: np.ndarray, t: int, j: int, *, of_a_batch: bool) -> float:
    value = pre[t, j]
    match sae.architecture:
        case "relu":
            return max(value, 0.0)
        case "gated":
            magnitude = (value - w["b_gate"][j]) * np.exp(w["r_mag"][j]) + w["b_mag"][j]
            return max(magnitude, 0.0) if value > 0 else 0.0
        case "topk":
            return max(value, 0.0) if value in sorted(pre[t])[-K:] else 0.0
        case "batch_topk" | "matryoshka" if of_a_batch:
            return max(value, 0.0) if value in sorted(pre.flatten())[-K * len(pre) :] else 0.0
        case "batch_topk" | "matryoshka":
            return value if value > w["threshold"] else 0.0
        case "jumprelu":
            return value if value > np.exp(w["log_threshold"][j]) else 0.0
    raise AssertionError(sae.architecture)


def reconstruction(
    sae: Autoencoder, w: Weights, f: np.ndarray, x: np.ndarray, n: int | None = None
) -> np.ndarray:
    """From the first ``n`` latents, or all."""
    made = f[:, :n] @ w["W_dec"][:n] + w["b_dec"]
    return made + x @ w["W_skip"] if sae.shape.skip else made


def row_norm(sae: Autoencoder, w: Weights, j: int) -> float:
    """Summed over the layers of a crosscoder."""
    return sum(np.sqrt((row**2).sum()) for row in np.split(w["W_dec"][j], sae.shape.n_layers))


def error(y: np.ndarray, y_hat: np.ndarray) -> float:
    return sum(((y[t] - y_hat[t]) ** 2).sum() for t in range(len(y))) / len(y)


def loss(sae: Autoencoder, w: Weights, x: np.ndarray, y: np.ndarray, scale: float, frozen: Weights) -> float:
    """``frozen``: the weights that a gated autoencoder's last term takes as constants."""
    pre = pre_activations(sae, w, x)
    f = latents(sae, w, pre, of_a_batch=True)
    coefficient = next(iter(SETTINGS[sae.architecture].values()))
    norms = [row_norm(sae, w, j) for j in range(pre.shape[1])]
    total = error(y, reconstruction(sae, w, f, x))
    match sae.architecture:
        case "relu":
            total += scale * coefficient * sum(f[t] @ norms for t in range(len(f))) / len(f)
        case "gated":
            gates = np.maximum(pre, 0)
            total += scale * coefficient * sum(gates[t] @ norms for t in range(len(f))) / len(f)
            total += scale * error(y, gates @ frozen["W_dec"] + frozen["b_dec"])
        case "jumprelu":
            total += scale * coefficient * (f > 0).sum() / len(f)
        case "matryoshka":
            total += error(y, reconstruction(sae, w, f, x, 3)) + error(y, reconstruction(sae, w, f, x, 6))
    return total
