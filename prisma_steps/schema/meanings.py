"""Names of dimensions, variables and coordinates, and what each of them says in figures and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from prisma_steps.schema.sites import SITES

#: Dimensions and what one index along each of them is.
DIMS: Mapping[str, str] = {
    "image": "an image or clip; its coordinate is a stable string id",
    "frame": "a frame of a clip, from its first",
    "channel": "a colour channel",
    "row": "a pixel row, from the top",
    "column": "a pixel column, from the left",
    "token": "a position of the transformer's sequence",
    "patch_frame": "tokens of one frame together, −1 for those that lie in none",
    "query_token": "the token that attends",
    "key_token": "the token attended to",
    "layer": "a block, counted from 0",
    "head": "an attention head of a block",
    "d_model": "a coordinate of the residual stream",
    "d_head": "a coordinate inside a head",
    "d_mlp": "a neuron of an MLP",
    "d_target": "a coordinate of what a transcoder writes",
    "component": "a summand of the residual stream (embed, attn_<layer> or mlp_<layer>), or of a logit",
    "latent": "a latent of a dictionary",
    "entry": "one firing of a latent in an image, in the order of tokens and then of latents",
    "rank": "a place among a latent's images, from 0, where it fires most strongly",
    "place": "a place among the classes, from 0, the one with the highest logit",
    "query_kind": "the kind of the tokens that attend: all, cls, register, distillation or patch",
    "key_kind": "the kind of the tokens attended to",
    "head_type": "what a head would do that attends to one relation of patches alone",
    "quantile": "a share of the images in which a latent fires, that fire it as strongly or less",
    "class": "a class",
    "ablation": "what takes the place of an activation, or of all outside of a circuit: zero, mean, …",
    "strength": "how strongly a latent is steered",
    "seed": "a random seed",
    "step": "an optimiser step of a training run",
    "training_step": "an optimiser step after which the weights were kept; 0 is before training",
    "pair": "a clean image with its corrupted counterpart",
    "site": "a place in a block where activations are changed",
    "source": "the writing end of an edge",
    "target": "the reading end of an edge",
    "n_edges": "edges that a circuit was given, before those that lead nowhere are left out",
    "n_nodes": "latents and error terms that a circuit has",
    "dictionary": "a dictionary in a model, by the site that it writes",
    "control": "a random circuit, drawn for comparison",
    "token_kind": "all, cls, register, distillation or patch; pooled where a model pools before its norm",
    "run": "a forward pass: clean, reconstruction (the site replaced by it) or error_term (both added)",
    "first_latent": "a latent of the first of two dictionaries",
    "second_latent": "a latent of the second of two dictionaries",
    "first_cell": "latents of the first of two dictionaries that stand together in a map, in its order",
    "second_cell": "latents of the second of two dictionaries that stand together in a map, in its order",
    "point": "one plotted point of a figure",
}

#: Dims of one clip's pixels; those of one still image are the last three.
IMAGE_DIMS = ("frame", "channel", "row", "column")


class Meaning(NamedTuple):
    """What a variable or coordinate holds, as figures and tables name it."""

    long_name: str
    units: str


_MATRICES = {
    "Q": "query",
    "K": "key",
    "V": "value",
    "O": "attention output",
    "gate": "MLP gate",
    "in": "MLP input",
    "out": "MLP output",
    "U": "unembedding",
}

#: What is measured of a circuit, of its complement and of random circuits.
_OF_CIRCUITS = {
    "circuit_metric": "metric",
    "faithfulness": "faithfulness",
    "faithfulness_area": "mean faithfulness over the range of sizes",
}

#: Long name and units of every variable and coordinate that an artifact may hold.
MEANINGS: Mapping[str, Meaning] = {
    **{dim: Meaning(dim, "1") for dim in DIMS},
    **{site: Meaning(text, "1") for site, text in SITES.items()},
    # coordinates
    "n_nodes": Meaning("latents and error terms of the circuit", "1"),
    "n_edges": Meaning("edges that the circuit was given", "1"),
    "run": Meaning("what is run: the circuit, a random one, or all but it", "1"),
    "token_kind": Meaning("token kind", "1"),
    "patch_row": Meaning("row on the patch grid", "patch"),
    "patch_col": Meaning("column on the patch grid", "patch"),
    "patch_frame": Meaning("frame on the patch grid", "tubelet"),
    "label": Meaning("class of the image", "1"),
    "class_name": Meaning("name of the class", "1"),
    "split": Meaning("train or test", "1"),
    "shape": Meaning("sprite shape", "1"),
    "scale": Meaning("sprite scale", "1"),
    "orientation": Meaning("sprite orientation", "rad"),
    "position_x": Meaning("sprite position, horizontal", "1"),
    "position_y": Meaning("sprite position, vertical", "1"),
    "velocity_x": Meaning("sprite velocity to the right", "pixel/frame"),
    "velocity_y": Meaning("sprite velocity downwards", "pixel/frame"),
    "epoch": Meaning("passes over the training images", "epoch"),
    "tokens_seen": Meaning("training tokens seen", "token"),
    # images
    "pixels": Meaning("intensity", "1/255"),
    "pixel_hash": Meaning("first 64 bits of the SHA-256 of the pixels", "1"),
    # training
    "train_loss": Meaning("training cross-entropy", "nat"),
    "train_accuracy": Meaning("training accuracy", "1"),
    "test_loss": Meaning("test cross-entropy", "nat"),
    "test_accuracy": Meaning("test accuracy", "1"),
    "test_accuracy_history": Meaning("test accuracy during training", "1"),
    "checkpoint_test_loss": Meaning("test cross-entropy of the weights that were kept", "nat"),
    "checkpoint_test_accuracy": Meaning("test accuracy of the weights that were kept", "1"),
    "validation_loss": Meaning("validation cross-entropy", "nat"),
    "best_step": Meaning("optimiser steps after which the validation loss was lowest", "step"),
    "learning_rate": Meaning("learning rate", "1"),
    "n_train": Meaning("training images", "image"),
    "n_test": Meaning("test images", "image"),
    "loss": Meaning("training loss", "1"),
    "sparsity_loss": Meaning("sparsity term of the loss", "1"),
    "dead_latents": Meaning("latents that have not fired lately", "latent"),
    # a model
    **{f"W_{name}": Meaning(f"{text} weight", "1") for name, text in _MATRICES.items()},
    **{f"b_{name}": Meaning(f"{text} bias", "1") for name, text in _MATRICES.items()},
    # decompositions of the residual stream
    "residual_component": Meaning("what is added to the residual stream", "1"),
    "residual_stream": Meaning("residual stream", "1"),
    "head_result": Meaning("what a head adds to the residual stream", "1"),
    "neuron_result": Meaning("what a neuron adds to the residual stream", "1"),
    "final_norm_contribution": Meaning("contribution to the output of the final norm", "1"),
    # dictionaries
    "W_enc": Meaning("encoder weight", "1"),
    "W_dec": Meaning("decoder weight", "1"),
    "b_enc": Meaning("encoder bias", "1"),
    "b_dec": Meaning("decoder bias", "1"),
    "b_gate": Meaning("bias of the gates", "1"),
    "b_mag": Meaning("bias of the magnitudes", "1"),
    "r_mag": Meaning("log of the magnitudes' factor on the encoder", "1"),
    "log_threshold": Meaning("log of the threshold above which a latent fires", "1"),
    "threshold": Meaning("threshold above which a latent fires", "1"),
    "W_skip": Meaning("linear skip weight", "1"),
    "norm_factor": Meaning("factor that brings E‖x‖ to √d_model", "1"),
    "target_norm_factor": Meaning("factor that brings the target's E‖y‖ to the root of its width", "1"),
    # quality of a dictionary
    "l0": Meaning("L0", "latent/token"),
    "mse": Meaning("MSE", "1"),
    "fvu": Meaning("FVU", "1"),
    "explained_variance": Meaning("explained variance", "1"),
    "cosine_similarity": Meaning("cosine similarity of x and x̂", "1"),
    "ce": Meaning("CE", "nat"),
    "ce_reconstruction": Meaning("reconstruction CE", "nat"),
    "ce_zero_ablation": Meaning("zero-ablation CE", "nat"),
    "ce_error_term": Meaning("CE with the error term added back", "nat"),
    "ce_recovered": Meaning("CE recovered", "%"),
    "top1": Meaning("top-1", "1"),
    "top1_reconstruction": Meaning("top-1 with the reconstruction", "1"),
    "top1_zero_ablation": Meaning("top-1 with zero ablation", "1"),
    "top1_error_term": Meaning("top-1 with the error term added back", "1"),
    "ce_without_temperature": Meaning("CE without temperature", "nat"),
    "ce_reconstruction_without_temperature": Meaning("reconstruction CE without temperature", "nat"),
    "ce_zero_ablation_without_temperature": Meaning("zero-ablation CE without temperature", "nat"),
    "ce_error_term_without_temperature": Meaning(
        "CE without temperature with the error term added back", "nat"
    ),
    "ce_recovered_without_temperature": Meaning("CE recovered without temperature", "%"),
    "alive_latents": Meaning("share of latents that fired", "1"),
    "dead_share": Meaning("share of latents that never fired", "1"),
    "dense_latents": Meaning("share of latents that fire on more than 10 % of the tokens", "1"),
    "dead_percent": Meaning("share of the latents that never fired", "%"),
    "sparse_percent": Meaning("share of the latents that fired, but on no more than 10 % of the tokens", "%"),
    "dense_percent": Meaning("share of the latents that fire on more than 10 % of the tokens", "%"),
    "dense_from": Meaning("share of the latents that fire on 10 % of the tokens or fewer", "%"),
    "firing_frequency": Meaning("share of tokens on which a latent fires", "1"),
    "firing_frequency_per_image": Meaning("share of images in which a latent fires", "1"),
    "site": Meaning("site", "1"),
    "architecture": Meaning("architecture of the dictionary", "1"),
    "sparsity_setting": Meaning("setting that makes the dictionary sparse", "1"),
    "basis": Meaning("what is active: latents or neurons", "1"),
    "target_site": Meaning("site that the dictionary writes", "1"),
    "target_layer": Meaning("layer of the site that a transcoder writes", "1"),
    "mean_activation": Meaning("mean activation where a latent fires", "1"),
    "max_activation": Meaning("highest activation", "1"),
    "latent_state": Meaning("dead, alive or dense", "1"),
    "decoder_norm": Meaning("norm of the decoder row", "1"),
    "nearest_latent": Meaning("latent with the nearest decoder row, −1 for none", "1"),
    "max_decoder_cosine": Meaning("cosine to the nearest other decoder row", "1"),
    "n_tokens": Meaning("tokens evaluated", "token"),
    # codes and what is made of them
    "entry_token": Meaning("place along token of what fires, −1 for padding", "1"),
    "entry_latent": Meaning("latent that fires, −1 for padding", "1"),
    "activation": Meaning("activation", "1"),
    "n_latents": Meaning("latents of the dictionary", "latent"),
    "n_active": Meaning("latents that fire", "latent"),
    "top_image": Meaning("image in which the latent fires most strongly, by rank", "1"),
    "top_activation": Meaning("highest activation in the image", "1"),
    "top_heat_map": Meaning("activation", "1"),
    "quantile_image": Meaning("image at the quantile of the latent's activation", "1"),
    "quantile_activation": Meaning("highest activation in the image at the quantile", "1"),
    "quantile_heat_map": Meaning("activation", "1"),
    "highest_in_frame": Meaning("highest activation over the patches of the frame", "1"),
    "mean_in_frame": Meaning("mean activation over the patches of the frame", "1"),
    # two dictionaries
    **{
        name: meaning
        for side, other in (("first", "second"), ("second", "first"))
        for name, meaning in {
            f"{side}_max_cosine": Meaning(f"cosine to the nearest decoder row of the {other}", "1"),
            f"{side}_nearest": Meaning(f"latent of the {other} with the nearest decoder row", "1"),
            f"{side}_place": Meaning(f"place of the {side}'s latent in the order of the map", "1"),
            f"{side}_matched_share": Meaning(f"share of the {side}'s latents that are matched", "1"),
        }.items()
    },
    "cosine_map": Meaning("highest cosine of decoder rows", "1"),
    # a dictionary spliced into its model
    "value_norm": Meaning("norm of the activation", "1"),
    "reconstruction_norm": Meaning("norm of the reconstruction", "1"),
    "error_norm": Meaning("norm of the error", "1"),
    "cls_attention": Meaning("attention of the CLS token", "1"),
    # lenses: the head on the residual stream of a layer
    "top_class": Meaning("class by the logit lens", "1"),
    "top_logit": Meaning("logit of the class by the logit lens", "1"),
    "correct_logit": Meaning("logit of the correct class", "1"),
    "correct_rank": Meaning("classes with a higher logit than the correct one", "class"),
    "correct_probability": Meaning("probability of the correct class", "1"),
    "exit_class": Meaning("class by the whole stream at the layer", "1"),
    "exit_logit": Meaning("logit of the correct class by the whole stream at the layer", "1"),
    "exit_rank": Meaning("classes with a higher logit than the correct one by the whole stream", "class"),
    "exit_probability": Meaning("probability of the correct class by the whole stream", "1"),
    "exit_ce": Meaning("CE by the whole stream at the layer", "nat"),
    # attribution of logits to components
    "logit_contribution": Meaning("contribution to the logit", "1"),
    "token_logit_contribution": Meaning("contribution to the logit through a token", "1"),
    "attributed_logit": Meaning("logit that is attributed", "1"),
    "attributed_class": Meaning("class whose logit is attributed", "1"),
    "subtracted_class": Meaning("class whose logit is subtracted", "1"),
    "component_kind": Meaning("kind of the component", "1"),
    "component_layer": Meaning("layer of the component, −1 for none", "1"),
    "component_head": Meaning("head of the component, −1 for none", "1"),
    # attention
    "attention_distance": Meaning("mean attention distance", "pixel"),
    "attention_frame_distance": Meaning("mean attention distance in time", "tubelet"),
    "uniform_attention_distance": Meaning("attention distance of uniform attention", "pixel"),
    "uniform_attention_frame_distance": Meaning("attention distance in time of uniform attention", "tubelet"),
    "attention_entropy": Meaning("attention entropy", "nat"),
    "uniform_attention_entropy": Meaning("attention entropy of uniform attention", "nat"),
    "attention_mass": Meaning("share of attention", "1"),
    "uniform_attention_mass": Meaning("share of uniform attention", "1"),
    "head_score": Meaning("share of the attention of patches", "1"),
    "uniform_head_score": Meaning("share of the attention of patches, of uniform attention", "1"),
    "attention_rollout": Meaning("attention rollout", "1"),
    "n_images": Meaning("images read", "image"),
    # interventions
    **{
        f"{prefix}{name}": Meaning(f"{text}{of}", "1" if prefix == "normalised_" else units)
        for name, (text, units) in {
            "logit_difference": ("logit difference, clean class − corrupted class", "1"),
            "probability": ("probability of the clean class", "1"),
            "ce": ("CE", "nat"),
            "kl": ("KL from the clean run", "nat"),
        }.items()
        for prefix, of in {
            "": "",
            "normalised_": ", normalised (clean = 1, corrupted = 0)",
            "clean_": ", of the clean run",
            "corrupted_": ", of the corrupted run",
        }.items()
    },
    "clean_image": Meaning("id of the clean image", "1"),
    "corrupted_image": Meaning("id of the corrupted image", "1"),
    "clean_class": Meaning("class of the clean image", "1"),
    "corrupted_class": Meaning("class of the corrupted image", "1"),
    "ce_ablated": Meaning("CE with the ablation", "nat"),
    "top1_ablated": Meaning("top-1 with the ablation", "1"),
    "ce_increase": Meaning("increase of the CE by the ablation", "nat"),
    "ce_increase_standard_error": Meaning("standard error of the increase of the CE, over images", "nat"),
    "logit": Meaning("logit of the steered run", "1"),
    "clean_logit": Meaning("logit of the clean run", "1"),
    "mean_logit_change": Meaning("change of the logit by steering, mean over images", "1"),
    "mean_probability_change": Meaning("change of the probability by steering, mean over images", "1"),
    "mean_activation_over_tokens": Meaning("mean activation over the steered tokens of all images", "1"),
    "attribution": Meaning("activation × gradient of the logit, summed over tokens, mean over images", "1"),
    "corrupted_pixels": Meaning("intensity of the corrupted image", "1/255"),
    # circuits
    "score": Meaning("effect on the metric of the edge's corrupted write", "1"),
    "in_circuit": Meaning("whether the edge is in the circuit", "1"),
    "latent_effect": Meaning("effect on the metric of the latent's corrupted value", "1"),
    "error_effect": Meaning("effect on the metric of the error term's corrupted value", "1"),
    "latent_in_circuit": Meaning("whether the latent is in the circuit", "1"),
    "error_in_circuit": Meaning("whether the error term is in the circuit", "1"),
    "n_edges_kept": Meaning("edges of the circuit", "edge"),
    "minimality": Meaning("faithfulness that the circuit loses without the edge", "1"),
    "clean_metric": Meaning("metric of the clean run", "1"),
    "empty_metric": Meaning("metric with all edges ablated", "1"),
    **{
        f"{name}{which}": Meaning(f"{text} of {of}", "1")
        for name, text in _OF_CIRCUITS.items()
        for which, of in {
            "": "the circuit",
            "_complement": "all edges but the circuit",
            "_random": "a random circuit of as many edges",
        }.items()
    },
}
