"""Options that stand in for keys that dataset.toml leaves out."""

from typing import Final

from anima_pipe.kohya.rows import (
    CACHING,
    TRAIN,
    Option,
    count_or_share,
    flag,
    group,
    integer,
    no_op,
    number,
    number_range,
    path,
    refused,
    size,
    text,
)

INTERPOLATIONS: Final = (
    "lanczos",
    "nearest",
    "bilinear",
    "linear",
    "bicubic",
    "cubic",
    "area",
)

DATASET_GROUP: Final = "Dataset (where dataset.toml does not say)"

_PICTURES: Final = group(
    DATASET_GROUP,
    CACHING,
    size(
        "resolution",
        "Area to train at, in pixels: one side of a square, or width,height.",
        test="test_options_of_datasets.py::test_a_rule_for_buckets_chooses_another_bucket",
    ),
    integer(
        "train_batch_size",
        "Pictures per step; dataset.toml calls it batch_size.",
        default=1,
        minimum=1,
        test="test_options_of_training.py::test_dataset_repeats_and_train_batch_size_make_the_epoch",
    ),
    integer(
        "dataset_repeats",
        "Visits to each picture per epoch; dataset.toml calls it num_repeats.",
        default=1,
        minimum=1,
        test="test_options_of_training.py::test_dataset_repeats_and_train_batch_size_make_the_epoch",
    ),
    flag(
        "enable_bucket",
        "Sort pictures into buckets of like shape instead of cropping to one.",
        test="test_options_of_datasets.py::test_a_rule_for_buckets_chooses_another_bucket",
    ),
    integer(
        "min_bucket_reso",
        "Shortest side of a bucket, in pixels.",
        default=256,
        minimum=16,
        test="test_options_of_datasets.py::test_a_rule_for_buckets_chooses_another_bucket",
    ),
    integer(
        "max_bucket_reso",
        "Longest side of a bucket, in pixels.",
        default=1024,
        minimum=16,
        test="test_options_of_datasets.py::test_a_rule_for_buckets_chooses_another_bucket",
    ),
    integer(
        "bucket_reso_steps",
        "Step between bucket sides, in pixels; a multiple of 16.",
        default=64,
        minimum=16,
        test="test_options_of_datasets.py::test_a_rule_for_buckets_chooses_another_bucket",
    ),
    flag(
        "bucket_no_upscale",
        "Leave pictures smaller than the resolution at their own size.",
        test="test_options_of_datasets.py::test_a_rule_for_buckets_chooses_another_bucket",
    ),
    flag(
        "flip_aug",
        "Show each picture mirrored at half of its visits.",
        test="test_options_of_datasets.py::test_flip_aug_asks_for_the_mirrored_picture_too",
    ),
    flag(
        "random_crop",
        "Crop at random places instead of the middle, crop_variants of them.",
        test="test_options_of_datasets.py::test_random_crop_moves_the_crop_off_the_middle",
    ),
    text(
        "resize_interpolation",
        "Resampling filter; not set: area to shrink, lanczos to enlarge.",
        choices=INTERPOLATIONS,
        same_as={"lanczos4": "lanczos", "box": "area"},
        test="test_options_of_datasets.py::test_resize_interpolation_changes_the_pixels",
    ),
    *refused(
        "its random colours differ at every visit, so they cannot be cached",
        "remove it",
        flag("color_aug", "Shift hue or gamma at random."),
    ),
    number_range(
        "face_crop_aug_range",
        "Crop around the face that a file name locates (name_x_y_width_height), the crop from LOW "
        "to HIGH faces long, crop_variants of them; without enable_bucket only.",
        test="test_face_crops.py::test_crops_around_a_face_are_cached_and_drawn",
    ),
    size(
        "skip_image_resolution",
        "Leave out pictures of no more than this area, in pixels before any resizing.",
        test="test_options_of_datasets.py::test_skip_image_resolution_leaves_small_pictures_out",
    ),
)

_CAPTIONS: Final = group(
    DATASET_GROUP,
    CACHING,
    text(
        "caption_extension",
        "Ending of the caption file beside each picture; .json holds captions by category, as "
        "other trainers for Anima write them.",
        default=".txt",
        default_note="The seed's; Kohya's own .caption is seldom what people have.",
        aliases=("caption_extention",),
        test="test_options_of_datasets.py::test_captions_are_in_the_files_of_the_ending_that_is_named",
    ),
    flag(
        "shuffle_caption",
        "Put a caption's tags into a new order at each visit.",
        test="test_options_of_datasets.py::test_a_rule_for_captions_gives_its_texts",
    ),
    text(
        "caption_separator",
        "What stands between tags.",
        default=",",
        test="test_options_of_datasets.py::test_a_rule_for_captions_gives_its_texts",
    ),
    integer(
        "keep_tokens",
        "Tags at the front that stay in place.",
        default=0,
        minimum=0,
        test="test_options_of_datasets.py::test_a_rule_for_captions_gives_its_texts",
    ),
    text(
        "keep_tokens_separator",
        "Marks the tags before it (and after a second one) as staying in place.",
        default="",
        test="test_options_of_datasets.py::test_a_rule_for_captions_gives_its_texts",
    ),
    flag(
        "keep_sections",
        "Shuffle and drop general tags only; what Anima's order puts before them, and sentences "
        "behind them, stay in place.",
        test="test_options_of_datasets.py::test_a_rule_for_captions_gives_its_texts",
    ),
    text(
        "secondary_separator",
        "Joins tags that stay together when shuffled.",
        test="test_options_of_datasets.py::test_a_rule_for_captions_gives_its_texts",
    ),
    flag(
        "enable_wildcard",
        "Expand {a|b} in captions, and draw one line of several.",
        test="test_options_of_datasets.py::test_a_rule_for_captions_gives_its_texts",
    ),
    text(
        "caption_prefix",
        "Put before every caption.",
        test="test_options_of_datasets.py::test_a_rule_for_captions_gives_its_texts",
    ),
    text(
        "caption_suffix",
        "Put behind every caption.",
        test="test_options_of_datasets.py::test_a_rule_for_captions_gives_its_texts",
    ),
    number(
        "caption_dropout_rate",
        "Share of visits without any caption, 0 to 1; 0.1 is usual.",
        default=0.0,
        minimum=0,
        maximum=1,
        test="test_options_of_datasets.py::test_caption_dropout_makes_visits_without_caption",
    ),
    integer(
        "caption_dropout_every_n_epochs",
        "Every n-th epoch without captions; 0: never.",
        default=0,
        minimum=0,
        test="test_options_of_datasets.py::test_caption_dropout_makes_visits_without_caption",
    ),
    number(
        "caption_tag_dropout_rate",
        "Share of tags left out, 0 to 1; another share needs no new texts.",
        default=0.0,
        minimum=0,
        maximum=1,
        test="test_options_of_datasets.py::test_a_rule_for_captions_gives_its_texts",
    ),
    integer(
        "token_warmup_min",
        "Free tags shown at the first step of a token warmup.",
        default=1,
        minimum=0,
        test="test_token_warmup.py::test_the_number_of_tags_at_each_part_is_kohyas",
    ),
    count_or_share(
        "token_warmup_step",
        "Steps until all tags are shown, or a share of the run below 1; 0: at once. The number "
        "grows in eight parts.",
        default=0,
        minimum=0,
        test="test_token_warmup.py::test_a_run_shows_more_tags_step_by_step",
    ),
    integer(
        "caption_seed",
        "Another one draws other variants of the captions; runs that share it share their texts, "
        "whatever their seed.",
        default=0,
        minimum=0,
        test="test_options_of_datasets.py::test_another_caption_seed_draws_other_variants",
    ),
    flag(
        "keep_backslashes",
        r"Leave `\(` and `\)` in captions as they are, as Kohya does; else they are read as ( and "
        "), as ComfyUI reads them in prompts.",
        test="test_options_of_datasets.py::test_backslashes_of_parentheses_stay_only_if_asked_to",
    ),
)

_SOURCES: Final = group(
    DATASET_GROUP,
    CACHING,
    number(
        "validation_split",
        "Share of the pictures held out for validation and not trained on, 0 to 1.",
        default=0.0,
        minimum=0,
        maximum=1,
        test="test_validation.py::test_pictures_held_out_are_not_trained_on",
    ),
    integer(
        "validation_seed",
        "Decides which pictures are held out, and the noise that they are looked at with.",
        default=0,
        default_note="Without one, Kohya's two lists are drawn apart and overlap.",
        minimum=0,
        test="test_validation.py::test_another_seed_of_validation_holds_out_other_pictures",
    ),
    number(
        "prior_loss_weight",
        "Factor of the loss of regularisation pictures.",
        default=1.0,
        minimum=0,
        test="test_regularisation.py::test_regularisation_pictures_weigh_what_prior_loss_weight_says",
    ),
    flag(
        "alpha_mask",
        "Train on the opaque parts of pictures only; what lies behind the others is white.",
        test="test_masks.py::test_where_masks_are_black_nothing_is_learnt",
    ),
    flag(
        "masked_loss",
        "Train on the white parts of mask images only, those of conditioning_data_dir; the loss is "
        "the mean over these parts.",
        default_note="Kohya divides by the whole area, which makes small parts count less.",
        test="test_masks.py::test_where_masks_are_black_nothing_is_learnt",
    ),
    path(
        "conditioning_data_dir",
        "Folder of mask images named like the pictures, for masked_loss.",
        test="test_masks.py::test_where_masks_are_black_nothing_is_learnt",
    ),
    *refused(
        "a dataset class of your own would bypass the caches",
        "describe the data in dataset.toml",
        text("dataset_class", "Python class that loads the data."),
    ),
    flag(
        "debug_dataset",
        "Print what every sample of the first epoch would be (file, bucket, crop, weight, caption) "
        "and end, instead of training.",
        commands=(TRAIN,),
        test="test_show_dataset.py::test_every_visit_of_the_first_epoch_is_shown_and_nothing_done",
    ),
    *no_op(
        "sizes and hashes of pictures are kept in the cache anyway",
        flag("cache_info", "Keep sizes and captions in a file beside the pictures."),
    ),
)

DATASET: Final[tuple[Option, ...]] = (*_PICTURES, *_CAPTIONS, *_SOURCES)
