"""Options of the caches."""

from typing import Final

from anima_pipe.kohya.rows import (
    ALL,
    CACHING,
    LATENTS,
    TEXT,
    TRAIN,
    Option,
    flag,
    group,
    integer,
    no_op,
    text,
)
from anima_pipe.records import MOST_PIXELS

CACHES: Final[tuple[Option, ...]] = group(
    "Caches",
    CACHING,
    text(
        "cache_dtype",
        "Precision of cached tensors.",
        default="fp16",
        choices=("fp16", "bf16", "fp32"),
        same_as={"float": "fp32"},
        test="test_options_of_the_machine.py::test_cache_dtype_is_that_of_the_cached_tensors",
    ),
    integer(
        "vae_batch_size",
        "Pictures that the VAE encodes at once.",
        default=1,
        minimum=1,
        commands=(LATENTS, TRAIN, ALL),
        test="test_options_of_the_machine.py::test_vae_batch_size_pictures_are_encoded_at_once",
    ),
    integer(
        "text_encoder_batch_size",
        "Captions that Qwen3 encodes at once; not set: 8 on a GPU, else 1.",
        default_note="Kohya takes the dataset's batch size.",
        minimum=1,
        commands=(TEXT, TRAIN, ALL),
        test="test_options_of_the_machine.py::test_text_encoder_batch_size_captions_are_encoded_at_once",
    ),
    integer(
        "max_data_loader_n_workers",
        "Processes that decode pictures for the caches; 0: none beside the main one, but for "
        "pictures so large (22 million pixels) that decoding them may end it. Training reads its "
        "batches where they lie in the caches, and needs none.",
        default=8,
        minimum=0,
        aliases=("num_workers",),
        commands=(LATENTS, TRAIN, ALL),
        test="test_options_of_the_machine.py::test_max_data_loader_n_workers_processes_decode_pictures",
    ),
    integer(
        "caption_variants",
        "Different renderings cached of each caption; not set: 1 where nothing varies, else 8.",
        minimum=1,
        commands=(TEXT, TRAIN, ALL),
        test="test_options_of_the_machine.py::test_caption_variants_of_each_caption_are_encoded",
    ),
    integer(
        "crop_variants",
        "Crops cached of each picture where random_crop or face_crop_aug_range is set.",
        default=4,
        minimum=1,
        test="test_options_of_datasets.py::test_random_crop_asks_for_as_many_crops_as_crop_variants_says",
    ),
    flag(
        "rehash",
        "Read every picture, even where nothing about the file has changed since the last scan; "
        "and try those again that killed the process that decoded them.",
        commands=(LATENTS, TRAIN, ALL),
        test="test_options_of_the_machine.py::test_rehash_notices_a_picture_that_was_changed_behind_its_date",
    ),
    integer(
        "max_image_pixels",
        "Pictures of more pixels, width times height, are left out and named: each takes about 12 "
        "bytes a pixel while it is decoded.",
        default=MOST_PIXELS,
        minimum=1,
        commands=(LATENTS, TRAIN, ALL),
        test="test_deadly_pictures.py::test_a_picture_of_more_pixels_than_max_image_pixels_is_named_with_its_size",
    ),
    flag(
        "follow_links",
        "Follow links that lead out of the dataset's folders; the plan names them. Never where "
        "cache_dir is an address, nor for a page of `inspect`.",
        default=True,
        test="test_links.py::test_links_out_of_the_dataset_are_named_and_refused_without_follow_links",
    ),
    flag(
        "auto_cache",
        "Let training cache what is missing first.",
        default=True,
        commands=(TRAIN,),
        test="test_stages.py::test_training_without_auto_cache_names_what_is_missing_and_the_command_that_makes_it",
    ),
    *no_op(
        "latents are always cached, on disk, in cache_dir",
        flag("cache_latents", "Cache latents.", default=None, default_note="Always on here."),
        flag(
            "cache_latents_to_disk",
            "Cache latents on disk.",
            default=None,
            default_note="Always on here.",
        ),
    ),
    *no_op(
        "text is always cached, on disk, in cache_dir, shuffled captions too",
        flag(
            "cache_text_encoder_outputs",
            "Cache encoded captions.",
            default=None,
            default_note="Always on here.",
        ),
        flag(
            "cache_text_encoder_outputs_to_disk",
            "Cache encoded captions on disk.",
            default=None,
            default_note="Always on here.",
        ),
    ),
    *no_op(
        "cached tensors are found by content, so there is no check to skip",
        flag(
            "skip_cache_check",
            "Trust cache files without looking.",
            aliases=("skip_latents_validity_check",),
        ),
    ),
    *no_op(
        "captions are encoded whole, at their real length",
        integer(
            "anima_seq_len",
            "Tokens of text (the seed's).",
            default=None,
            default_note="The seed's 512; here nothing is cut or padded.",
        ),
        integer("qwen3_max_token_length", "Qwen3 tokens of text.", default=512),
        integer("t5_max_token_length", "T5 tokens of text.", default=512),
    ),
    *no_op(
        "the workers live as long as the stage that needs them",
        flag("persistent_data_loader_workers", "Keep workers between epochs."),
    ),
    *no_op(
        "the VAE is two-dimensional here: one picture has no frames to cache or to cut",
        flag("qwen_image_vae_2d", "Run the VAE without its time axis."),
        flag("vae_disable_cache", "Run the VAE without its cache of frames."),
        integer("vae_chunk_size", "Channels per piece of the VAE's convolutions."),
    ),
    *no_op(
        "the VAE never runs in fp16",
        flag("no_half_vae", "Run the VAE in fp32."),
    ),
)
