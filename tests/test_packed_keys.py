"""Packed keys are as good as sets and lists of texts."""

from hypothesis import given
from hypothesis import strategies as st

from anima_pipe.shards.packed_keys import KeyPlaces, KeySet, PackedKeys

# Few different ones, with zeros at their ends, where fixed-width bytes are easily taken for others.
DIGITS = st.binary(min_size=0, max_size=2)
KEYS = st.one_of(
    DIGITS.map(lambda digest: digest.ljust(16, b"\0").hex()),
    DIGITS.map(lambda digest: digest.rjust(16, b"\0").hex()),
)
NAMES = st.one_of(KEYS, KEYS.map(str.upper), st.text("ab-_", min_size=1, max_size=5))


@given(keys=st.lists(KEYS), asked=KEYS)
def test_packed_keys_are_a_list_of_which_the_first_place_of_each_is_known(keys, asked):
    packed = PackedKeys(keys)
    places = KeyPlaces(packed)
    assert list(packed) == keys
    assert [packed[place] for place in range(len(packed))] == keys
    assert list(places.distinct()) == list(dict.fromkeys(keys))
    assert len(places) == len(set(keys))
    assert places.find(asked) == (keys.index(asked) if asked in keys else None)


@given(steps=st.lists(st.tuples(st.lists(NAMES, max_size=4), NAMES), max_size=5))
def test_a_set_holds_what_it_was_given_whatever_it_was_asked_before(steps):
    packed, plain = KeySet(), set[str]()
    for added, asked in steps:
        packed.update(added)
        plain.update(added)
        assert (asked in packed) == (asked in plain)
