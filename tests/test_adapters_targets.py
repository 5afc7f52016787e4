"""Which modules of a model an adapter is put on."""

from __future__ import annotations

import pytest
import torch
from adapter_cases import small_model
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from anima_pipe.adapters import create_adapter
from anima_pipe.adapters.inject import walk
from anima_pipe.adapters.styles import STYLES, PathIndex, split_key
from anima_pipe.errors import ConfigError
from anima_pipe.model import AnimaTransformer, TransformerConfig


def skeleton(blocks: int) -> AnimaTransformer:
    """Return a model of the released widths without memory for its weights."""
    with torch.device("meta"):
        return AnimaTransformer(TransformerConfig(blocks=blocks))


RELEASED = skeleton(28)


def targets(model: nn.Module, **rules) -> list[str]:
    """Return the paths that an adapter would be put on."""
    adapter = create_adapter("lora", model, **rules)
    adapter.remove()
    return list(adapter.deltas)


def test_the_default_is_340_of_515_linears_and_156_norms_of_the_released_model():
    linears = [path for path, module in walk(RELEASED) if isinstance(module, nn.Linear)]
    chosen = targets(RELEASED)

    assert len(linears) == 515
    assert sum(path in linears for path in chosen) == 340
    assert sum(path not in linears for path in chosen) == 156


def test_modulations_embedders_and_the_final_layer_are_left_alone_by_default():
    others = ("adaln_modulation", "x_embedder", "t_embedder", "final_layer", "out_proj", "embed")

    assert [path for path in targets(RELEASED) if any(word in path for word in others)] == [
        "t_embedding_norm"
    ]


@pytest.mark.parametrize(
    ("rules", "count"),
    [
        ({"train_norm": False}, 340),
        ({"train_llm_adapter": False}, 280 + 113),
        ({"train_llm_adapter": "no", "train_norm": "no"}, 280),
        ({"target_modules": "q_proj,k_proj", "train_norm": False}, 2 * 68),
        ({"target_modules": "self_attn.q_proj", "train_norm": False}, 34),
        ({"target_modules": "transformer.blocks.3.mlp.layer1", "train_norm": False}, 1),
        ({"target_modules": "blocks.*.mlp.layer?", "train_norm": False}, 56),
        ({"target_modules": r"re:^blocks\.\d{2}\.mlp", "train_norm": False}, 36),
        ({"target_modules": ["q_proj", "mlp.0"], "train_norm": False}, 68 + 6),
        ({"exclude_patterns": r".*\.mlp\..*", "train_norm": False}, 340 - 56 - 12),
        ({"exclude_patterns": "['.*mlp.*', '.*attn.*']"}, 2),
        ({"include_patterns": "[ef]inal_layer.(linear|out)", "train_norm": False}, 341),
        ({"include_patterns": ".*_modulation_mlp.*", "train_norm": False}, 340 + 56),
        (
            {
                "include_patterns": r"blocks\.0\.mlp\.layer1",
                "exclude_patterns": ".*mlp.*",
                "train_norm": False,
            },
            340 - 56 - 12 + 1,
        ),
        ({"include_patterns": "llm_adapter.*", "train_llm_adapter": False}, 280 + 113),
    ],
)
def test_patterns_choose_what_they_say(rules, count):
    assert len(targets(RELEASED, **rules)) == count


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"target_modules": "qproj"}, "target_modules: 'qproj' matches none of 515 modules"),
        ({"include_patterns": "adaln"}, "include_patterns: 'adaln' matches none"),
        ({"exclude_patterns": ["mlp"]}, "exclude_patterns: 'mlp' matches none of 671 modules"),
        ({"exclude_patterns": "(.*"}, "is not a regular expression"),
        ({"exclude_patterns": "[.*"}, "is not a regular expression"),
        ({"exclude_patterns": ".*"}, "no module of this AnimaTransformer is left"),
    ],
)
def test_a_pattern_without_effect_is_refused_with_the_paths_there_are(rules, words):
    with pytest.raises(ConfigError, match=words):
        create_adapter("lora", RELEASED, **rules)


def test_an_adapted_model_offers_the_same_paths_as_before():
    model = small_model()
    before = targets(model)

    create_adapter("lora", model)

    assert targets(model) == before


@pytest.mark.parametrize("blocks", [28, 36, 40, 52])
@pytest.mark.parametrize("style", STYLES)
def test_every_module_of_every_layout_is_found_again_by_its_name_in_a_file(blocks, style):
    paths = [path for path, _module in walk(skeleton(blocks))]
    index = PathIndex(paths)
    parts = {path: split_key(STYLES[style].key(path, "alpha"), ["alpha"])[0] for path in paths}

    assert {path: index.find(part) for path, part in parts.items()} == {p: p for p in paths}
    assert len(set(parts.values())) == len(paths)


PATHS = [path for path, _module in walk(RELEASED)]


@given(
    path=st.sampled_from(PATHS),
    style=st.sampled_from(sorted(STYLES)),
    name=st.sampled_from(["alpha", "lora_A.weight", "lora_B.weight", "lokr_w1_a", "w_norm"]),
)
def test_a_key_splits_into_the_module_and_tensor_it_was_made_of(path, style, name):
    renamed = STYLES[style].renamed.get(name, name)

    part, found = split_key(STYLES[style].key(path, name), [renamed, "weight", "w1_a"])

    assert (PathIndex(PATHS).find(part), found) == (path, renamed)


def test_two_modules_with_one_name_in_a_file_are_refused():
    with pytest.raises(ConfigError, match=r"mlp\.a_b and mlp_a\.b have one name"):
        PathIndex(["mlp_a.b", "mlp.a_b"])
