"""`anima-pipe inspect`: the page says of each picture what training will do with it."""

import base64
import io
import itertools
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import MODEL, Ended, assert_one_error, options, run_apart, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import forget_inode_dates, photo
from PIL import ExifTags, Image, ImageEnhance

from anima_pipe.buckets import choose_bucket
from anima_pipe.cli.main import main
from anima_pipe.dataset.picture_captions import PictureTexts
from anima_pipe.dataset.pictures import find_pictures
from anima_pipe.encoders.t5_tokens import T5Tokens
from anima_pipe.inspection.likeness import ALIKE_UP_TO, alike
from anima_pipe.kohya.dataset_toml import load_dataset_config
from anima_pipe.runtime import LOGGER

X = "\N{MULTIPLICATION SIGN}"

SMALL = ("--resolution", 128, "--min_bucket_reso", 64)
"""Options that make small buckets."""

LONG_AGO = 1_600_000_000

HOSTILE = "</p></article><script>alert(1)</script>, <img src=x onerror=alert(2)>, \"a\" & 'b', 狐"


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    text: str = ""
    inside: list["Element"] = field(default_factory=list)

    def all(self, tag: str, kind: str = "") -> list["Element"]:
        """Return the elements inside of a tag and, if given, of a class."""
        found = []
        for element in self.inside:
            if element.tag == tag and kind in ("", *element.attributes.get("class", "").split()):
                found.append(element)
            found += element.all(tag, kind)
        return found


class Page(HTMLParser):
    """The elements of a page as a browser would nest them; fails where it is not well formed."""

    EMPTY = ("meta", "img", "input", "link", "br")

    def __init__(self, text: str):
        super().__init__()
        self.open = [Element("page", {})]
        self.feed(text)
        self.close()
        assert len(self.open) == 1, [element.tag for element in self.open]
        self.root = self.open[0]

    def handle_starttag(self, tag, attrs):
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].inside.append(element)
        if tag not in self.EMPTY:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open[-1].tag == tag, (tag, self.open[-1])
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element.text += data

    def cards(self) -> dict[str, Element]:
        """Return the cards by the names of their pictures."""
        return {card.all("h3")[0].text: card for card in self.root.all("article", "card")}

    def flags(self) -> dict[str, set[str]]:
        cards = self.cards().items()
        return {name: set(card.attributes["data-flags"].split()) for name, card in cards}


def run(*arguments: object) -> Ended:
    result = CliRunner().invoke(main, ["inspect", *map(str, arguments)])
    LOGGER.handlers.clear()
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Ended(code=result.exit_code, said=result.stderr, printed=result.stdout, summary=None)


@pytest.fixture
def inspect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Inspect a dataset; return the page."""
    monkeypatch.setenv("ANIMA_PIPE_HOME", str(tmp_path / "home"))

    def inspected(dataset: Path, *arguments: object) -> Page:
        output = tmp_path / "page.html"
        run(dataset, "--output", output, *arguments).ok()
        return Page(output.read_text("utf-8"))

    return inspected


def save(folder: Path, name: str, picture: Image.Image, caption: str | None = "fox, smile", **how):
    folder.mkdir(exist_ok=True)
    picture.save(folder / name, **how)
    if caption is not None:
        (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")
    return folder / name


def test_a_card_says_what_training_does_with_its_picture(inspect, pictures: Path, dataset: Path):
    page = inspect(dataset)
    [config] = load_dataset_config(dataset, {})

    cards = page.cards()
    assert sorted(cards) == sorted(p.name for p in pictures.iterdir() if p.suffix != ".txt")
    for name, card in cards.items():
        with Image.open(pictures / name) as picture:
            size = picture.size
        choice = choose_bucket(config.buckets, image_size=size)
        facts = card.all("p", "facts")[0].text
        assert f"{size[0]}{X}{size[1]} to {choice.bucket[0]}{X}{choice.bucket[1]}" in facts
        assert f"scaled by {choice.resized[0] / size[0]:.2f}" in facts
        assert "1 visit per epoch" in facts
        caption = (pictures / name).with_suffix(".txt").read_text("utf-8").strip()
        assert card.all("p", "caption")[0].text == caption
        [crop] = card.all("i", "crop")
        shares = re.findall(r"[\d.]+(?=%)", crop.attributes["style"])
        expected = [
            choice.crop[0] / choice.resized[0],
            choice.crop[1] / choice.resized[1],
            choice.bucket[0] / choice.resized[0],
            choice.bucket[1] / choice.resized[1],
        ]
        assert [float(share) / 100 for share in shares] == pytest.approx(expected, abs=1e-4)


def test_a_dataset_with_masks_is_looked_at_under_masked_loss(inspect, tmp_path: Path):
    save(tmp_path / "fox", "sound.png", Image.new("RGB", (128, 128)))
    save(tmp_path / "fox", "small.png", Image.new("RGB", (128, 128)))
    save(tmp_path / "masks", "sound.png", Image.new("L", (128, 128)), caption=None)
    save(tmp_path / "masks", "small.png", Image.new("L", (64, 64)), caption=None)
    masks = ("--conditioning_data_dir", tmp_path / "masks")

    page = inspect(tmp_path / "fox", *SMALL, "--masked_loss", *masks)

    assert list(page.cards()) == ["sound.png"]
    (skipped,) = page.root.all("details", "skipped")
    (line,) = skipped.all("li")
    assert "small.png is 64x64 pixels, the picture 128x128" in line.text


def test_variants_are_the_texts_that_are_encoded(inspect, tmp_path: Path):
    save(tmp_path / "in", "a.png", photo(), "one, two, three, four, five")
    rules = {"shuffle_caption": True, "keep_tokens": 1}
    dataset = write_dataset(tmp_path / "d.toml", tmp_path / "in", **rules)
    pictures = find_pictures(load_dataset_config(dataset, {}))
    encoded = set(PictureTexts(pictures, caption_variants=5))

    [card] = inspect(dataset, "--caption_variants", 5).root.all("article")
    shown = [item.text.removesuffix(item.all("small")[0].text) for item in card.all("li")]
    assert sorted(shown) == sorted(text for text in encoded if text)
    assert len(shown) > 2


def test_tokens_are_counted_as_the_encoders_count_them(inspect, dataset: Path):
    t5 = MODEL["t5_tokenizer_dir"]
    page = inspect(dataset, "--t5_tokenizer_dir", t5)

    for card in page.cards().values():
        caption = card.all("p", "caption")[0].text
        counts = [int(n) for n in re.findall(r"\d+(?!\w)", card.all("p", "tokens")[0].text)]
        assert counts[-1] == len(T5Tokens(Path(t5)).encode(caption))
        assert 0 < counts[0] < len(caption)
    assert "T5 tokens are not counted" not in page.root.text
    assert "T5 tokens are not counted" in inspect(dataset).root.text


def test_nothing_in_names_and_captions_becomes_part_of_the_page(inspect, tmp_path: Path):
    name = "<b>fox<\u2044b> \"quoted\" & 'x' 狐.png"
    save(tmp_path / "in", name, photo(), HOSTILE)
    save(tmp_path / "in", "plain.png", photo(), "fox")
    (tmp_path / "in" / "<i>empty.png").write_bytes(b"")

    page = inspect(tmp_path / "in", *SMALL)
    assert page.cards()[name].all("p", "caption")[0].text == HOSTILE
    assert len(page.root.all("script")) == 1
    assert "fox" not in "".join(bold.text for bold in page.root.all("b"))
    assert "<i>empty.png" in page.root.all("details", "skipped")[0].text
    tags = [element for tag in ("img", "button", "article", "h3") for element in page.root.all(tag)]
    assert not [name for tag in tags for name in tag.attributes if name.startswith("on")]


def test_the_page_needs_nothing_from_elsewhere(inspect, dataset: Path, tmp_path: Path):
    page = inspect(dataset)

    for image in page.root.all("img"):
        assert image.attributes["src"].startswith("data:image/webp;base64,")
        assert image.attributes["loading"] == "lazy"
    assert page.root.all("link") == []
    assert all("src" not in script.attributes for script in page.root.all("script"))
    [policy] = [m for m in page.root.all("meta") if "http-equiv" in m.attributes]
    assert policy.attributes["content"].startswith("default-src 'none'")
    text = re.sub(r"data:[^\"]*", "", (tmp_path / "page.html").read_text("utf-8"))
    assert re.findall(r"https?:|url\(|@import", text) == []


def test_what_a_cache_remembers_of_pictures_is_not_read_again(
    inspect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    forget_inode_dates(monkeypatch)
    folder, cache = tmp_path / "in", tmp_path / "cache"
    for number in range(2):
        path = save(folder, f"{number}.png", Image.new("RGB", (300, 300)))
        path.write_bytes(path.read_bytes() + b"%d" % number)  # not a part of the picture
        os.utime(path, (LONG_AGO, LONG_AGO))

    def duplicates(*arguments: object) -> list[str]:
        flags = inspect(folder, *SMALL, "--cache_dir", cache, *arguments).flags()
        return [name for name, held in flags.items() if "duplicate" in held]

    assert duplicates() == []
    assert not cache.exists()
    cache.mkdir()
    assert duplicates() == []
    path.write_bytes((folder / "0.png").read_bytes())
    os.utime(path, (LONG_AGO, LONG_AGO))
    assert duplicates() == []
    assert sorted(duplicates("--rehash")) == ["0.png", "1.png"]


def test_copies_and_pictures_that_look_alike_are_told_apart(inspect, tmp_path: Path):
    folder = tmp_path / "in"
    original = save(folder, "original.png", photo().resize((600, 400)))
    shutil.copy(original, folder / "copy.png")
    save(folder, "recompressed.jpg", photo().resize((600, 400)), quality=30)
    save(folder, "small.jpg", photo().resize((150, 100)), quality=70)
    save(folder, "brighter.png", ImageEnhance.Brightness(photo().resize((600, 400))).enhance(1.2))
    turned = photo().resize((600, 400)).transpose(Image.Transpose.ROTATE_180)
    save(folder, "upside down.png", turned)
    for colour in ("red", "blue"):
        save(folder, f"{colour}.png", Image.new("RGB", (300, 300), colour))

    page = inspect(folder, *SMALL)
    flags = page.flags()
    twins, like = {"original.png", "copy.png"}, {"recompressed.jpg", "small.jpg", "brighter.png"}
    assert {name for name, held in flags.items() if "duplicate" in held} == twins
    assert {name for name, held in flags.items() if "alike" in held} == twins | like
    assert [link.text for link in page.cards()["copy.png"].all("p", "kin")[0].all("a")] == [
        "original.png"
    ]


def test_one_file_in_two_subsets_is_no_duplicate_of_itself(inspect, pictures: Path, tmp_path: Path):
    subset = f"[[datasets.subsets]]\nimage_dir = {json.dumps(str(pictures))}\n"
    (tmp_path / "d.toml").write_text(
        f"[[datasets]]\nresolution = 128\n{subset}[[datasets]]\nresolution = 256\n{subset}"
    )
    page = inspect(tmp_path / "d.toml")
    assert len(page.root.all("article")) == 12
    assert not [flags for flags in page.flags().values() if flags & {"duplicate", "alike"}]


def test_what_is_odd_about_a_picture_is_marked(inspect, tmp_path: Path):
    folder = tmp_path / "in"
    save(folder, "large.png", photo().resize((600, 600)))
    save(folder, "small.png", photo().resize((60, 60)).rotate(90))
    save(folder, "uncaptioned.png", photo().resize((500, 400)).rotate(180), None)
    save(folder, "blank caption.png", photo().resize((400, 500)).rotate(270), "")
    save(folder, "long.png", photo().rotate(45).resize((400, 400)), "fox and scarf, " * 300)
    cut = save(folder, "cut.jpg", photo().resize((300, 400)))
    cut.write_bytes(cut.read_bytes()[:3000])
    (folder / "empty.jpg").write_bytes(b"")

    page = inspect(
        folder, *SMALL,
        "--t5_tokenizer_dir", MODEL["t5_tokenizer_dir"],
    )  # fmt: skip
    flags = {name: held - {"alike"} for name, held in page.flags().items()}
    assert flags == {
        "large.png": set(),
        "small.png": {"enlarged"},
        "uncaptioned.png": {"uncaptioned"},
        "blank caption.png": {"uncaptioned"},
        "long.png": {"long"},
        "cut.jpg": {"broken"},
    }
    assert "truncated" in page.cards()["cut.jpg"].all("p", "gone")[0].text
    assert "empty.jpg is empty" in page.root.all("details", "skipped")[0].text


def test_a_picture_that_exif_turns_is_shown_and_measured_upright(inspect, tmp_path: Path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    save(tmp_path / "in", "turned.jpg", photo().resize((600, 400)), exif=exif)

    [card] = inspect(tmp_path / "in", *SMALL).root.all("article")
    assert f"400{X}600 to" in card.all("p", "facts")[0].text
    source = card.all("img")[0].attributes["src"].partition(",")[2]
    with Image.open(io.BytesIO(base64.b64decode(source))) as thumbnail:
        assert thumbnail.width < thumbnail.height <= 320


def test_the_summary_counts_buckets_visits_and_tags(inspect, tmp_path: Path):
    folder = tmp_path / "in"
    save(folder, "wide.png", photo().resize((400, 200)), "fox, scarf")
    save(folder, "wide too.png", photo().resize((400, 200)).rotate(180), "fox, fox, hat")
    save(folder, "tall.png", photo().resize((200, 400)), "fox")
    page = inspect(write_dataset(tmp_path / "d.toml", folder, num_repeats=3))

    buckets, folders = page.root.all("table")
    rows = [[cell.text for cell in row.all("td")][:3] for row in buckets.all("tr")[1:]]
    assert [row[1:] for row in rows] == [["2", "6"], ["1", "3"]]
    assert [cell.text for cell in folders.all("tr")[1].all("td")] == [str(folder), "3", "3", "9"]
    tags = [button for button in page.root.all("button") if "data-find" in button.attributes]
    assert [[part.text for part in tag.inside] for tag in tags] == [
        ["fox", "3"],
        ["hat", "1"],
        ["scarf", "1"],
    ]


def test_the_charts_are_drawn_as_their_numbers_are(inspect, tmp_path: Path):
    folder = tmp_path / "in"
    for number in range(4):
        save(folder, f"wide {number}.png", photo().rotate(number).resize((400, 200)))
    save(folder, "tall.png", photo().resize((200, 400)))
    page = inspect(folder, *SMALL)

    def sides(chart: Element, side: str) -> list[float]:
        """Return the lengths of a chart's bars in percent, or where they are."""
        return [float(bar.attributes[side].rstrip("%")) for bar in chart.all("svg")]

    rows = [sides(chart, "width") for chart in page.root.all("svg", "row")]
    assert rows == [[100], [25]]
    [shapes] = page.root.all("svg", "columns")
    names = [text.text for text in shapes.all("title")]
    heights = dict(zip(names, sides(shapes, "height"), strict=True))
    assert heights["4 near 2:1"] == pytest.approx(4 * heights["1 near 1:2"], abs=0.02)
    assert heights["0 near 1:1"] < heights["1 near 1:2"]
    assert [text.text for text in shapes.all("text", "value")] == ["1", "4"]


def test_random_crops_are_all_drawn(inspect, tmp_path: Path):
    save(tmp_path / "in", "wide.png", photo().resize((800, 200)))
    how = (
        "--resolution",
        128,
        "--no-enable_bucket",
        "--random_crop",
        "--flip_aug",
        "--crop_variants",
        3,
    )

    [card] = inspect(tmp_path / "in", *how).root.all("article")
    crops = {crop.attributes["style"] for crop in card.all("i", "crop")}
    assert len(crops) == len(card.all("i", "crop")) > 1
    assert "also mirrored" in card.all("p", "facts")[0].text


def test_beyond_the_limit_marked_pictures_have_cards_first_and_the_page_says_so(
    inspect, tmp_path: Path
):
    for number in range(4):
        save(tmp_path / "in", f"{number}.png", photo().resize((300, 300)).rotate(number * 77))
    (tmp_path / "in" / "3.txt").unlink()

    some = inspect(tmp_path / "in", "--limit", 2, *SMALL)
    every = inspect(tmp_path / "in", "--limit", 0, *SMALL)
    assert list(some.cards()) == ["0.png", "3.png"]
    assert "cards for 2 of 4 pictures" in some.root.all("p", "note")[0].text
    assert len(every.cards()) == 4
    assert "cards for" not in every.root.text


def test_a_train_args_file_names_the_dataset(inspect, dataset: Path, tmp_path: Path):
    train_args = tmp_path / "train_args.toml"
    train_args.write_text(f"dataset_config = {json.dumps(str(dataset))}\n")

    assert len(inspect(train_args).cards()) == 6


def test_worker_processes_see_what_one_process_sees(inspect, tmp_path: Path):
    for number in range(70):
        save(tmp_path / "in", f"{number:02}.png", photo().rotate(number), f"fox {number}")

    several = inspect(tmp_path / "in", "--num_workers", 2, *SMALL)
    alone = inspect(tmp_path / "in", "--num_workers", 0, *SMALL)
    assert several.root == alone.root


def test_inspecting_imports_no_torch(dataset: Path, tmp_path: Path):
    script = (
        "import sys\nfrom anima_pipe.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nfinally:\n    print('torch' in sys.modules)"
    )
    ended = run_apart(
        sys.executable, "-c", script, "inspect", str(dataset), *options(output=tmp_path / "p.html")
    )
    assert ended.ok().printed.strip() == "False"


def test_a_dataset_that_is_not_there_is_one_clear_error(tmp_path: Path):
    assert_one_error(run(tmp_path / "nowhere", "--output", tmp_path / "p.html"), "nowhere")
    assert not (tmp_path / "p.html").exists()


def slowly_alike(hashes: list[int | None]) -> list[list[int]]:
    """Group by comparing all with all."""
    groups = [{n} for n, value in enumerate(hashes) if value is not None]
    for a, b in itertools.combinations(range(len(hashes)), 2):
        left, right = hashes[a], hashes[b]
        if None not in (left, right) and (left ^ right).bit_count() <= ALIKE_UP_TO:
            [first] = [group for group in groups if a in group]
            [second] = [group for group in groups if b in group]
            if first is not second:
                first |= second
                groups.remove(second)
    return sorted(sorted(group) for group in groups if len(group) > 1)


@settings(max_examples=60)
@given(st.data())
def test_comparing_in_bands_finds_what_comparing_all_with_all_finds(data):
    bits = st.integers(0, 63)
    bases = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
    hashes: list[int | None] = [None, *bases]
    for flipped in data.draw(st.lists(st.sets(bits, max_size=8), max_size=12)):
        base = data.draw(st.sampled_from(bases))
        hashes.append(base ^ sum(1 << bit for bit in flipped))

    assert alike(hashes) == slowly_alike(hashes)


def test_a_train_args_file_without_a_dataset_is_an_error_that_says_how_to_give_one(tmp_path: Path):
    config = tmp_path / "train_args.toml"
    config.write_text("learning_rate = 1e-4\n")

    result = CliRunner().invoke(main, ["inspect", str(config)])
    LOGGER.handlers.clear()

    assert result.exit_code == 2
    assert f"error: {config} names no dataset to look at" in result.stderr
    assert "anima-pipe inspect dataset.toml" in result.stderr
