"""The caption gap against models whose knowledge of a word is known."""

from __future__ import annotations

import pytest
import torch

from components.diffusion.caption_gap import caption_gap, swap_word
from components.diffusion.noise import alpha_bars

CAPTIONS = ["a car moving left", "a Car moving right", "a still car", "the leftmost car"] * 8


@pytest.mark.parametrize(
    ("caption", "words", "swapped"),
    [
        ("a car moving left", ("left", "right"), "a car moving right"),
        ("right of the road", ("left", "right"), "left of the road"),
        ("Left turn", ("left", "right"), "right turn"),
        ("the leftmost car", ("left", "right"), None),
        ("standing still", ("still", "standing still"), "still"),
        ("a blue car", ("red", "blue", "green"), "a green car"),
        ("100% (left)", ("left", "right"), "100% (right)"),
    ],
)
def test_one_whole_word_is_swapped(caption: str, words: tuple[str, ...], swapped: str | None) -> None:
    assert swap_word(caption, words) == swapped


def states(texts):
    """A text encoder of one number: +1 for left, -1 for right, 0 for neither."""
    return torch.tensor([[[float("left" in text.split()) - float("right" in text.split())]] for text in texts])


def test_the_gap_is_the_growth_of_the_error() -> None:
    """A model that errs by 0.1 where the word fits the picture and by 0.2 where it doesn't has a gap of three."""
    side = torch.tensor([1.0, -1.0, 0.0, 0.0] * 8)
    latents = side.view(-1, 1, 1, 1).expand(-1, 4, 2, 2) * 5
    alpha_bar = alpha_bars()

    def predict(z_t, t_B, text_BLD):
        eps = (z_t - alpha_bar[t_B].sqrt().view(-1, 1, 1, 1, 1) * picture(z_t, t_B)) / (1 - alpha_bar[t_B]).sqrt().view(
            -1, 1, 1, 1, 1
        )
        wrong = (text_BLD[:, 0, 0].sign() != picture(z_t, t_B).mean((1, 2, 3, 4)).sign()).float()
        return eps + 0.1 * (1 + wrong).view(-1, 1, 1, 1, 1)

    def picture(z_t, t_B):
        sign = z_t.mean(dim=(1, 2, 3, 4), keepdim=True).sign()  # the latents are five noise levels apart at t = 100
        return 5 * sign.expand_as(z_t)

    found = caption_gap(predict, states, latents, CAPTIONS, ("left", "right"), alpha_bar, timesteps=(100,))
    assert [(row.timestep, row.stills) for row in found] == [(100, 16)]
    assert found[0].gap == pytest.approx(3.0, rel=1e-3)
    assert found[0].low == pytest.approx(3.0, rel=1e-3)


def test_a_model_that_does_not_read_has_no_gap() -> None:
    torch.manual_seed(0)
    found = caption_gap(
        lambda z_t, t_B, text_BLD: z_t * 0.5,
        states,
        torch.randn(32, 4, 2, 2),
        CAPTIONS,
        ("left", "right"),
        alpha_bars(),
    )
    assert {row.gap for row in found} == {0.0}


def test_captions_without_the_words_give_none() -> None:
    assert caption_gap(None, states, torch.zeros(32, 4, 2, 2), CAPTIONS, ("red", "blue"), alpha_bars()) == []  # type: ignore[arg-type]
