"""Options of Kohya's other models and trainers, which Anima's adapters have no use for."""

from typing import Final

from anima_pipe.kohya.rows import (
    TRAINING,
    Option,
    flag,
    group,
    integer,
    no_op,
    number,
    path,
    refused,
    text,
)

OTHER_MODELS: Final[tuple[Option, ...]] = group(
    "Other models and trainers",
    TRAINING,
    *no_op(
        "it concerns CLIP, Stable Diffusion's text encoder; Anima reads captions by Qwen3",
        integer("clip_skip", "Layers of CLIP left out."),
        integer("max_token_length", "Tokens of CLIP."),
        path("tokenizer_cache_dir", "Folder of CLIP's tokenizer."),
    ),
    *no_op(
        "it names FLUX's text encoder; Anima needs T5's tokenizer alone, in t5_tokenizer_dir",
        path("t5xxl", "FLUX's second text encoder."),
    ),
    *refused(
        "captions are encoded as they stand, as Kohya encodes them for Anima",
        "remove it, and the weights from the captions",
        flag("weighted_captions", "Read (word:1.2) as weights."),
    ),
    *refused(
        "it trains Stable Diffusion's inpainting models",
        "remove it",
        flag("train_inpainting", "Train an inpainting model."),
    ),
    *refused(
        "it belongs to ControlNet-LLLite training, which this project does not do",
        "remove it",
        integer("cond_emb_dim", "Width of the control embedding.", default=32),
        integer("lllite_mlp_dim", "Width of a module.", default=64),
        text("lllite_target_layers", "Layers with a module.", default="self_attn_q"),
        integer("lllite_cond_dim", "Width of the control trunk.", default=64),
        integer("lllite_cond_resblocks", "Blocks of the control trunk.", default=1),
        flag("lllite_use_aspp", "Pool at several scales."),
        number("lllite_dropout", "Dropout of a module."),
        number("lllite_multiplier", "Strength of the modules.", default=1.0),
        integer("lllite_cond_in_channels", "Channels of the control picture.", default=3),
        flag("lllite_inpaint_masked_input", "Blank the masked part."),
    ),
)
