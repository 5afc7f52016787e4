"""Repository ids and links of both hubs are understood, and anything else is refused by name."""

import pytest

from anima_pipe.errors import ConfigError
from anima_pipe.hub.sources import Hub, Source, parse_source

HF = Hub.HUGGING_FACE
MS = Hub.MODELSCOPE
HF_SITE = "https://huggingface.co"
MS_SITE = "https://modelscope.cn/models"


@pytest.mark.parametrize(
    ("text", "hub", "repo", "revision", "folder"),
    [
        ("google/t5-v1_1-base", HF, "google/t5-v1_1-base", None, None),
        ("  google/t5-v1_1-base ", HF, "google/t5-v1_1-base", None, None),
        ("t5-base", HF, "t5-base", None, None),
        ("owner/name@v1.0", HF, "owner/name", "v1.0", None),
        ("owner/name@refs/pr/3", HF, "owner/name", "refs/pr/3", None),
        (f"{HF_SITE}/owner/name", HF, "owner/name", None, None),
        (f"{HF_SITE}/owner/name/", HF, "owner/name", None, None),
        ("http://www.HuggingFace.co/owner/name", HF, "owner/name", None, None),
        ("hf.co/owner/name", HF, "owner/name", None, None),
        ("huggingface.co/owner/name/tree/main/sub", HF, "owner/name", "main", "sub"),
        (f"{HF_SITE}/owner/name@v2", HF, "owner/name", "v2", None),
        (f"{HF_SITE}/owner/name/tree/v1.0", HF, "owner/name", "v1.0", None),
        (f"{HF_SITE}/owner/name/tree/main/a/b", HF, "owner/name", "main", "a/b"),
        (f"{HF_SITE}/owner/name/tree/refs%2Fpr%2F1/sub", HF, "owner/name", "refs/pr/1", "sub"),
        (f"{HF_SITE}/owner/name/blob/main/sub/spiece.model", HF, "owner/name", "main", "sub"),
        (f"{HF_SITE}/owner/name/blob/main/config.json", HF, "owner/name", "main", ""),
        (f"{HF_SITE}/owner/name/resolve/main/sub/config.json?download=true",
         HF, "owner/name", "main", "sub"),
        (f"{HF_SITE}/owner/name/resolve/main/sub", HF, "owner/name", "main", "sub"),
        (f"{HF_SITE}/owner/name/resolve/main/v1.0", HF, "owner/name", "main", "v1.0"),
        (f"{HF_SITE}/t5-base/tree/main", HF, "t5-base", "main", None),
        (f"{MS_SITE}/owner/name", MS, "owner/name", None, None),
        ("www.modelscope.cn/models/owner/name/summary", MS, "owner/name", None, None),
        (f"{MS_SITE}/owner/name/files", MS, "owner/name", None, None),
        (f"{MS_SITE}/owner/name/tree/master/tokenizer", MS, "owner/name", "master", "tokenizer"),
        (f"{MS_SITE}/owner/name/resolve/v1/a/spiece.model", MS, "owner/name", "v1", "a"),
        (f"{MS_SITE}/owner/name/file/view/master/a%2Fspiece.model?status=2",
         MS, "owner/name", "master", "a"),
        (f"{MS_SITE}/owner/name/files?Revision=v1&FilePath=a%2Fb", MS, "owner/name", "v1", "a/b"),
        (f"{MS_SITE}/owner/name/files?FilePath=a/config.json", MS, "owner/name", None, "a"),
    ],
)  # fmt: skip
def test_a_source_is_understood(
    text: str, hub: Hub, repo: str, revision: str | None, folder: str | None
):
    assert parse_source(text) == Source(hub=hub, repo=repo, revision=revision, folder=folder)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "T5 repo source cannot be empty."),
        ("   ", "T5 repo source cannot be empty."),
        (f"{HF_SITE}/datasets/owner/name", "Invalid HuggingFace URL for T5 source:"),
        (f"{HF_SITE}/spaces/owner/name", "Invalid HuggingFace URL for T5 source:"),
        (HF_SITE, "Invalid HuggingFace URL for T5 source:"),
        (f"{HF_SITE}/owner/name/commits/main", "Invalid HuggingFace URL for T5 source:"),
        (f"{HF_SITE}/owner/name/tree/main/../../x", "Invalid HuggingFace URL for T5 source:"),
        ("https://modelscope.cn/datasets/owner/name", "Invalid ModelScope URL for T5 source:"),
        (f"{MS_SITE}/owner", "Invalid ModelScope URL for T5 source:"),
        ("https://example.org/owner/name", "Unsupported URL host for T5 source:"),
        ("ftp://huggingface.co/owner/name", "Unsupported URL host for T5 source:"),
        ("./models/t5", "is not a repository id"),
        ("owner/name/tokenizer", "is not a repository id"),
        ("owner name", "is not a repository id"),
    ],
)
def test_what_is_no_source_is_refused_by_name(text: str, problem: str):
    with pytest.raises(ConfigError) as caught:
        parse_source(text)

    assert problem in caught.value.problem
    assert text.strip() in caught.value.problem
    assert caught.value.remedy


def test_an_open_revision_becomes_the_hubs_own_default():
    assert parse_source(f"{MS_SITE}/owner/name").filled(folder="x").revision == "master"
    assert parse_source("owner/name").filled(folder="x").revision == "main"


def test_what_a_link_says_wins_over_the_defaults():
    filled = parse_source(f"{HF_SITE}/owner/name/tree/v1/a").filled(folder="b", revision="v2")

    assert (filled.revision, filled.folder) == ("v1", "a")
