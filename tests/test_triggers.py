"""What calls the subject of a training, and which pictures and texts tell whether it is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from commands import demo_pictures

from anima_pipe import runs
from anima_pipe.dataset.config import LeakageConfig
from anima_pipe.dataset.pictures import Picture, find_pictures
from anima_pipe.dataset.probes import PICTURES, UNRELATED, Probes, choose_probes
from anima_pipe.source.captions import CaptionRules
from anima_pipe.source.triggers import shared_tags, without_trigger

RULES = CaptionRules()


def test_the_tags_of_nearly_all_captions_call_the_subject():
    captions = [f"Hoshi_Maru, star mark, tree {number}. Sits, waits." for number in range(9)]

    assert shared_tags([*captions, "star mark, hill"], RULES) == ("hoshi maru", "star mark")
    assert shared_tags([*captions, "a hill", "a lake"], RULES) == ()


def test_tags_of_quality_safety_and_count_call_no_subject():
    caption = "masterpiece, best_quality, score_7, newest, safe, 1girl, solo, hoshimaru, @someone"

    assert shared_tags([caption] * 3, RULES) == ("hoshimaru", "@someone")


def test_of_two_captions_nothing_is_concluded():
    assert shared_tags(["fox, hoshimaru"] * 2, RULES) == ()


@pytest.mark.parametrize(
    ("caption", "rest"),
    [
        ("safe, hoshimaru, sitting", "safe, sitting"),
        ("Hoshi Maru, sitting", "sitting"),
        ("hoshi_maru, sitting", "sitting"),
        ("sitting. Hoshimaru walks home, slowly.", "sitting. walks home, slowly."),
        ("a red fox, fox, sitting", "a, sitting"),
        ("hoshimaru's hat, hoshimaru (hero)", "'s hat, (hero)"),
        ("森で星丸が笑う", "森でが笑う"),
        ("hoshimaru", ""),
    ],
)
def test_a_caption_loses_the_trigger_in_tags_and_sentences(caption: str, rest: str):
    trigger = ("fox", "red fox", "hoshimaru", "hoshi maru", "星丸")

    assert without_trigger(caption, trigger, RULES) == rest


@pytest.mark.parametrize("caption", ["foxglove ,  meadow", "a firefox", ""])
def test_a_caption_without_the_trigger_stays_as_it_is(caption: str):
    assert without_trigger(caption, ("fox", "hoshimaru"), RULES) == caption


Choose = Callable[..., Probes]


def found(*subsets: runs.SubsetConfig) -> Sequence[Picture]:
    buckets = runs.BucketRules(resolution=(512, 512))
    return find_pictures([runs.DatasetConfig(subsets=subsets, buckets=buckets)])


@pytest.fixture(scope="module")
def choose(tmp_path_factory: pytest.TempPathFactory) -> Choose:
    """Choose among twelve pictures of a fox, and as many that regularise; by rules of the first."""
    folder = tmp_path_factory.mktemp("probes")
    pictures, others = (
        demo_pictures(folder / "fox", every=3),
        demo_pictures(folder / "reg", every=3),
    )

    def chosen(trigger: tuple[str, ...] = (), **rules: float) -> Probes:
        subsets = (
            runs.SubsetConfig(image_dir=pictures, **rules),
            runs.SubsetConfig(image_dir=others, is_reg=True),
        )
        return choose_probes(found(*subsets), LeakageConfig(trigger=trigger))

    return chosen


def folders(probes: Probes) -> set[str]:
    return {probe.picture.folder.name for probe in probes.pictures}


def test_pictures_are_chosen_among_those_of_the_subject(choose: Choose):
    probes = choose()

    assert len({probe.picture.name for probe in probes.pictures}) == PICTURES
    assert folders(probes) == {"fox"}
    assert probes.trigger[0] == "hoshimaru"
    assert all("hoshimaru" in probe.caption for probe in probes.pictures)
    assert not any("hoshimaru" in (probe.without or "hoshimaru") for probe in probes.pictures)


def test_pictures_held_out_are_chosen_where_there_are_any(choose: Choose):
    probes = choose(validation_split=0.25)

    assert len(probes.pictures) == 3
    assert all(probe.picture.held_out for probe in probes.pictures)


def test_a_trigger_that_is_named_wins_over_what_captions_share(choose: Choose):
    probes = choose(("Star Mark",))

    assert probes.trigger == ("Star Mark",)
    assert all("hoshimaru" in (probe.without or "") for probe in probes.pictures)
    assert all("star mark" not in (probe.without or "") for probe in probes.pictures)


def test_prompts_that_name_the_trigger_are_not_unrelated(choose: Choose):
    assert choose().unrelated == UNRELATED
    assert [p for p in UNRELATED if p not in choose(("cat",)).unrelated] == [UNRELATED[4]]


def test_a_caption_that_cannot_be_read_is_left_out(choose: Choose, tmp_path: Path):
    pictures = demo_pictures(tmp_path / "some", every=6)
    (first, *_) = sorted(pictures.glob("*.txt"))
    first.write_bytes(b"\xff\xfe\xfa")

    probes = choose_probes(found(runs.SubsetConfig(image_dir=pictures)), LeakageConfig())
    assert first.stem not in {Path(probe.picture.name).stem for probe in probes.pictures}
    assert len(probes.pictures) == len(list(pictures.glob("*.txt"))) - 1
