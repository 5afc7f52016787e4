import pytest
from hypothesis import given
from hypothesis import strategies as st

from anima_pipe.records import BucketChoice
from anima_pipe.shards import latent_key, text_key

CHOICE = BucketChoice(bucket=(832, 1216), resized=(832, 1248), crop=(0, 16))
CONTENT = "9f86d081884c7d65"


def key(**changes):
    fields = {"content": CONTENT, "choice": CHOICE, "flipped": False, "interpolation": None}
    return latent_key(**(fields | changes))


def test_latent_keys_never_change_between_versions():
    assert key() == "c45e2dbde2f4688c90d7b630458bf141"
    assert (
        key(flipped=True, interpolation="area", alpha="black") == "9206a8fa909cf88d93edf10cf9989358"
    )


def test_text_keys_never_change_between_versions():
    assert text_key("") == "6b5592b1223dc16b78e6fe563a67dff4"
    assert text_key("1girl, solo, 初音ミク, café 🎨") == "831bbedf13f1f759d4a213ae2d89ea11"


@pytest.mark.parametrize(
    "change",
    [
        {"content": "9f86d081884c7d66"},
        {"choice": BucketChoice(bucket=(832, 1184), resized=(832, 1248), crop=(0, 16))},
        {"choice": BucketChoice(bucket=(832, 1216), resized=(840, 1248), crop=(0, 16))},
        {"choice": BucketChoice(bucket=(832, 1216), resized=(832, 1248), crop=(16, 0))},
        {"flipped": True},
        {"interpolation": "lanczos"},
        {"alpha": "black"},
    ],
    ids=["content", "bucket", "resized", "crop", "flipped", "interpolation", "alpha"],
)
def test_whatever_changes_the_pixels_changes_the_latent_key(change):
    assert key(**change) != key()


@given(st.text(), st.text())
def test_captions_share_a_key_only_if_they_are_the_same(one, other):
    assert (text_key(one) == text_key(other)) == (one == other)


def test_a_caption_that_utf8_cannot_say_has_a_key():
    assert len(text_key("broken \ud800 surrogate")) == 32
