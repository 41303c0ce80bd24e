"""Uncoded: every gradient as it is."""

import numpy as np
import pytest
import torch

from draco.schemes import DecodeError, build


def test_decodes_to_the_replies_themselves() -> None:
    scheme = build("uncoded", workers=4, adversaries=1)
    replies = torch.randn(4, 7)
    decoded = scheme.decode(replies)
    assert decoded.gradients.data_ptr() == replies.data_ptr()
    assert decoded.suspects == ()


def test_drops_up_to_s_missing_rows_without_reading_them() -> None:
    scheme = build("uncoded", workers=4, adversaries=1)
    replies = torch.randn(4, 7)
    replies[2] = float("nan")
    decoded = scheme.decode(replies, np.array([True, True, False, True]))
    assert torch.equal(decoded.gradients, replies[[0, 1, 3]])


def test_names_the_rows_when_more_than_s_are_missing() -> None:
    scheme = build("uncoded", workers=4, adversaries=1)
    with pytest.raises(DecodeError, match=r"rows \[0, 2\] did not arrive; at most 1 of 4"):
        scheme.decode(torch.zeros(4, 7), np.array([False, True, False, True]))
