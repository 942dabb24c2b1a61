"""Circuits: which parts of a model, reading and writing which others, make its answer.

Wang et al. 2022 (arXiv 2211.00593); Goldowsky-Dill et al. 2023 (arXiv 2304.05969); Syed et al. 2023
(arXiv 2310.10348); Hanna et al. 2024 (arXiv 2403.17806); of latents, Marks et al. 2024 (arXiv 2403.19647).
"""
