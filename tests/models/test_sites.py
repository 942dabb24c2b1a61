from __future__ import annotations

import pytest
import torch

from prisma_steps.models.sites import SiteError, at, check_keys

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


def test_a_hook_must_keep_the_shape():
    with pytest.raises(ValueError, match=r"hook at resid_pre of layer 1 returned \(2,\), expected \(2, 3\)"):
        at({("resid_pre", 1): lambda value: value[:, 0]}, "resid_pre", 1, torch.zeros(2, 3))


def test_without_a_hook_the_value_itself_goes_on():
    value = torch.zeros(2)
    assert at({}, "embed", None, value) is value
    assert at({("resid_pre", 0): torch.exp}, "embed", None, value) is value
