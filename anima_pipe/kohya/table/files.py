"""Options that name files and folders, and those of the commands themselves."""

from pathlib import Path
from typing import Final

from anima_pipe.kohya.rows import (
    ALL,
    CACHING,
    EVERY_COMMAND,
    EXPORT,
    FETCH,
    LATENTS,
    TEXT,
    TRAIN,
    TRAINING,
    Option,
    flag,
    group,
    no_op,
    number,
    path,
    place,
    refused,
    text,
)

_MODELS: Final = group(
    "Model files",
    TRAINING,
    path(
        "pretrained_model_name_or_path",
        "Anima's transformer, a .safetensors file.",
        aliases=("anima_transformer", "dit_path"),
        commands=TRAINING,
        when_missing="Anima transformer path is required. Set --anima_transformer or "
        "--pretrained_model_name_or_path.",
        fetched_by="fetch-models",
        test="test_options_of_training.py::test_the_transformer_that_is_named_is_the_one_that_is_trained",
    ),
    path(
        "vae",
        "The Wan 2.1 / Qwen-Image VAE, a .safetensors file.",
        aliases=("vae_path",),
        commands=(LATENTS, TRAIN, ALL),
        when_missing="Anima VAE path is required. Set --vae.",
        fetched_by="fetch-models",
        test="test_options_of_training.py::test_another_vae_and_another_qwen3_have_caches_of_their_own",
    ),
    path(
        "qwen3",
        "Qwen3-0.6B, a Hugging Face folder or one .safetensors file.",
        aliases=("qwen", "qwen3_path"),
        commands=(TEXT, TRAIN, ALL),
        when_missing="Qwen path is required. Set --qwen.",
        fetched_by="fetch-models",
        test="test_options_of_training.py::test_another_vae_and_another_qwen3_have_caches_of_their_own",
    ),
    path(
        "t5_tokenizer_dir",
        "Folder of the T5 tokenizer: config.json, spiece.model, tokenizer.json; where none is "
        "given, one in the user's cache folder.",
        aliases=("t5_tokenizer_path",),
        commands=(FETCH, TEXT, TRAIN, ALL),
        when_missing="T5 tokenizer directory is required. Set --t5_tokenizer_dir.",
        fetched_by="fetch-tokenizer",
        test="test_fetch_tokenizer_command.py::test_the_command_takes_links_and_kohyas_spelling",
    ),
    path(
        "llm_adapter_path",
        "The text adapter's own file, taken instead of llm_adapter.* in the transformer's, which "
        "may then lack it.",
        commands=TRAINING,
        test="test_llm_adapter_path.py::test_a_transformer_in_two_files_trains_to_the_bits_of_the_whole",
    ),
    *no_op(
        "files are read tensor by tensor, each once",
        flag("disable_mmap_load_safetensors", "Read model files without mapping them."),
    ),
)

_TOKENIZER_SOURCES: Final = group(
    "Fetching the tokenizer",
    (FETCH, TEXT, TRAIN, ALL),
    flag(
        "auto_download_t5_tokenizer",
        "Fetch what is missing from t5_tokenizer_dir.",
        default=True,
        test="test_fetch_tokenizer_command.py::test_without_downloads_missing_files_are_listed_at_once",
    ),
    text(
        "t5_tokenizer_repo_id",
        "Where it is fetched from: owner/name on Hugging Face, with or without @revision, or the "
        "URL of a repository, folder or file on Hugging Face or ModelScope.",
        default="google/t5-v1_1-base",
        test="test_fetch_tokenizer_command.py::test_the_command_takes_links_and_kohyas_spelling",
    ),
    text(
        "t5_tokenizer_subfolder",
        "Folder of it in the repository; the root is tried next.",
        default="tokenizer",
        test="test_fetch_tokenizer_command.py::test_t5_tokenizer_subfolder_is_where_the_repository_is_looked_into",
    ),
    flag(
        "t5_tokenizer_modelscope_fallback",
        "Try ModelScope where Hugging Face fails.",
        default=True,
        test="test_fetch_tokenizer_command.py::test_the_fallback_can_be_switched_off",
    ),
    text(
        "t5_tokenizer_modelscope_repo_id",
        "Repository on ModelScope.",
        default="nv-community/Cosmos-Predict2-2B-Text2Image",
        test="test_fetch_tokenizer_command.py::test_the_fallback_takes_its_repository_revision_and_folder_from_the_options",
    ),
    text(
        "t5_tokenizer_modelscope_revision",
        "Its branch, tag or commit.",
        default="master",
        test="test_fetch_tokenizer_command.py::test_the_fallback_takes_its_repository_revision_and_folder_from_the_options",
    ),
    text(
        "t5_tokenizer_modelscope_subfolder",
        "Its folder.",
        default="tokenizer",
        test="test_fetch_tokenizer_command.py::test_the_fallback_takes_its_repository_revision_and_folder_from_the_options",
    ),
    flag(
        "force",
        "Fetch all files afresh and replace those that are there.",
        commands=(FETCH,),
        test="test_fetch_tokenizer_command.py::test_force_fetches_what_is_there_afresh",
    ),
    *no_op(
        "the tokenizer's files are always checked against each other",
        flag("t5_tokenizer_validate_strict", "Refuse a tokenizer whose vocabulary is not T5's."),
    ),
)

_INPUT_AND_OUTPUT: Final = group(
    "Input and output",
    EVERY_COMMAND,
    path(
        "config_file",
        "TOML file of options; section headings do not matter, the command line wins over it.",
        test="test_train_toml.py::test_the_command_line_wins_over_the_file_and_the_file_over_the_default",
    ),
    path(
        "dataset_config",
        "dataset.toml (or .json), or a folder of pictures with captions beside them.",
        beside_file=True,
        or_else=("train_data_dir", "in_json"),
        commands=CACHING,
        when_missing="a dataset is required. Set --dataset_config to a dataset.toml or a folder "
        "of pictures.",
        test="test_dataset_toml.py::test_training_folders_serve_where_no_dataset_is_given",
    ),
    path(
        "train_data_dir",
        "Folder of folders of pictures, named 10_subject: visits per epoch, and the caption of "
        "pictures without one; instead of dataset_config.",
        commands=CACHING,
        test="test_dataset_toml.py::test_training_folders_serve_where_no_dataset_is_given",
    ),
    path(
        "reg_data_dir",
        "Folder of folders of regularisation pictures, named 10_class like those of train_data_dir "
        "and visited as often in all.",
        commands=CACHING,
        test="test_regularisation.py::test_folders_of_regularisation_pictures_match_the_training_folders",
    ),
    path(
        "in_json",
        "Metadata file of pictures with captions, their paths relative to train_data_dir; instead "
        "of dataset_config.",
        commands=CACHING,
        test="test_dataset_toml.py::test_in_json_and_train_data_dir_are_one_dataset",
    ),
    place(
        "cache_dir",
        "Folder of cached latents and text; runs and datasets may share it. Or its address: s3://, "
        "gs://, hf://, https:// (only read), whatever fsspec opens.",
        default=Path("cache"),
        commands=CACHING,
        test="test_options_of_the_machine.py::test_cache_dir_is_where_the_caches_are",
    ),
    path(
        "cache_mirror_dir",
        "Where an address in cache_dir has its mirror: the shards in use; by default in the user's "
        "cache folder.",
        commands=CACHING,
        test="test_remote_cache.py::test_what_stages_write_to_a_bucket_is_trained_from_elsewhere",
    ),
    number(
        "cache_mirror_gb",
        "Size that the shards in cache_mirror_dir may have, in 10^9 bytes; the least recently used "
        "go first.",
        default=100.0,
        minimum=0,
        commands=CACHING,
        test="test_remote_cache.py::test_the_mirror_keeps_no_more_than_cache_mirror_gb_allows",
    ),
    path(
        "output_dir",
        "Folder that adapters, previews and records of the run are written to.",
        commands=TRAINING,
        when_missing="a folder for the results is required. Set --output_dir.",
        test="test_training_runs.py::test_saves_are_named_as_kohya_names_them",
    ),
    text(
        "output_name",
        "First part of the names of saved files; with a slash, within a folder of output_dir.",
        commands=TRAINING,
        test="test_options_of_training.py::test_results_are_named_for_output_name_and_carry_training_comment",
    ),
    path(
        "input",
        "The adapter file, or the checkpoint, to export.",
        commands=(EXPORT,),
        when_missing="Set --input.",
        test="test_export.py::test_norms_are_exported_to_diffusers_only_where_they_may_be_dropped",
    ),
    path(
        "output",
        "The file to write, .safetensors; of a checkpoint for diffusers a new folder.",
        commands=(EXPORT,),
        when_missing="Set --output.",
        test="test_export.py::test_norms_are_exported_to_diffusers_only_where_they_may_be_dropped",
    ),
    path(
        "summary_json",
        "Write the command's counts and results to this file, as JSON.",
        test="test_options_of_training.py::test_summary_json_holds_what_a_command_came_to",
    ),
    flag(
        "debug",
        "Show the full traceback of an error.",
        test="test_bad_input.py::test_debug_shows_the_traceback_too",
    ),
    flag(
        "strict",
        "End with an error where a picture or a caption had to be skipped, or a JPEG is damaged.",
        commands=CACHING,
        test="test_bad_input.py::test_under_strict_an_unreadable_picture_is_a_failure",
    ),
    flag(
        "output_config",
        "Write the resolved options to config_file and end; where that is there, print them.",
        test="test_output_config.py::test_the_command_lines_options_are_written_to_a_new_file",
    ),
    *refused(
        "root-style configuration files are gone",
        "convert the file by `anima-pipe convert-config FILE`, and use --config_file",
        path("config", "The seed's older root-style configuration file."),
    ),
)

FILES: Final[tuple[Option, ...]] = (*_MODELS, *_TOKENIZER_SOURCES, *_INPUT_AND_OUTPUT)
