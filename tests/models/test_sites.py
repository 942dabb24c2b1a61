from __future__ import annotations

import pytest
import torch

from prisma_steps.models.sites import SiteError, check_keys, checked
from prisma_steps.schema import site_key

SITES = {"embed": False, "resid_pre": True, "resid_post": True}


def test_keys_that_exist_pass():
    check_keys([("embed", None), ("resid_pre", 0), ("resid_post", 2)], SITES, 3)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            ("resid_poste", 0),
            "no site 'resid_poste'. Did you mean 'resid_post'\\? Its sites: embed, resid_pre",
        ),
        (("embed", 0), r"'embed' exists once: its key is \('embed', None\), not \('embed', 0\)"),
        (("resid_pre", 3), "no layer 3 at site 'resid_pre': the model has layers 0 to 2"),
        (("resid_pre", -1), "no layer -1"),
        (("resid_pre", None), "no layer None"),
    ],
)
def test_keys_that_name_nothing_are_refused(key, message):
    with pytest.raises(SiteError, match=message):
        check_keys([key], SITES, 3)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("resid_post", ("resid_post", None)),
        ("hook_resid_post", ("resid_post", None)),
        ("blocks.11.hook_resid_post", ("resid_post", 11)),
        ("blocks.0.attn.hook_q", ("q", 0)),
        ("blocks.2.ln1.hook_normalized", ("ln1_out", 2)),
        ("ln_final.hook_normalized", ("ln_final", None)),
        ("hook_ln_pre", ("full_embed", None)),
        ("blocks.2.resid_post", ("blocks.2.resid_post", 2)),
    ],
)
def test_names_of_transformer_lens(name, key):
    assert site_key(name) == key


def test_a_tap_must_keep_the_shape():
    tap = checked(lambda value: value[:, 0], ("resid_pre", 1))
    with pytest.raises(ValueError, match=r"hook at resid_pre of layer 1 returned \(2,\), expected \(2, 3\)"):
        tap(torch.zeros(2, 3))
