"""Options of saved files and previews."""

from typing import Final

from anima_pipe.kohya.rows import (
    ALL,
    EXPORT,
    TEXT,
    TRAIN,
    TRAINING,
    Option,
    StandIn,
    flag,
    group,
    integer,
    no_op,
    number,
    path,
    refused,
    text,
)

_PICKLE: Final = StandIn(
    "safetensors", "a pickled file can run code when it is opened; the tensors are the same"
)
_OTHER_SAMPLERS: Final = (
    "ddim pndm lms euler_a heun dpm_2 dpm_2_a dpmsolver dpmsolver++ dpmsingle k_lms k_euler_a "
    "k_dpm_2 k_dpm_2_a"
)
_OTHER_SAMPLER: Final = StandIn("euler", "Kohya draws Anima's previews by Euler steps too")

_SAVING: Final = group(
    "Saving",
    TRAINING,
    integer(
        "save_every_n_steps",
        "Steps between saves; 0 or not set: none.",
        minimum=0,
        zero_is_none=True,
        test="test_training_runs.py::test_saves_are_named_as_kohya_names_them",
    ),
    integer(
        "save_every_n_epochs",
        "Epochs between saves; 0 or not set: none.",
        minimum=0,
        zero_is_none=True,
        test="test_training_runs.py::test_saves_are_named_as_kohya_names_them",
    ),
    text(
        "save_precision",
        "Precision of saved adapters and checkpoints; not set: as they are trained, fp32 but for "
        "full_bf16.",
        choices=("float", "fp16", "bf16"),
        same_as={"fp32": "float"},
        commands=(TRAIN, EXPORT, ALL),
        test="test_training_runs.py::test_saved_tensors_take_the_precision_asked_for",
    ),
    text(
        "save_format",
        "Names of the tensors: ComfyUI's, diffusers' or Kohya's.",
        default="comfy",
        choices=("comfy", "diffusers", "kohya"),
        commands=(TRAIN, EXPORT, ALL),
        test="test_options_of_training.py::test_save_format_names_the_tensors",
    ),
    flag(
        "drop_norms",
        "Leave trained norms out of the file: diffusers and sd-scripts do not apply them.",
        commands=(EXPORT,),
        test="test_export.py::test_norms_are_exported_to_diffusers_only_where_they_may_be_dropped",
    ),
    path(
        "merge",
        "Bake the adapter into this full checkpoint, text adapter included; the output is a "
        "checkpoint too.",
        commands=(EXPORT,),
        test="test_adapter_commands.py::test_export_comfy_bakes_into_a_checkpoint_where_it_is_told_to",
    ),
    number(
        "merge_strength",
        "Multiplies what is baked.",
        default=1.0,
        commands=(EXPORT,),
        test="test_options_of_training.py::test_merge_strength_multiplies_what_is_baked_into_the_checkpoint",
    ),
    text(
        "save_model_as",
        "Kind of file.",
        default="safetensors",
        choices=("safetensors",),
        stand_ins={"ckpt": _PICKLE, "pt": _PICKLE},
        test="test_options_of_training.py::test_save_model_as_safetensors_is_what_is_written",
    ),
    text(
        "training_comment",
        "A remark for the saved file's metadata.",
        test="test_options_of_training.py::test_results_are_named_for_output_name_and_carry_training_comment",
    ),
    integer(
        "save_last_n_steps",
        "Keep the saves by steps of the last N steps; 0 or not set: all.",
        minimum=0,
        zero_is_none=True,
        test="test_options_of_training.py::test_save_last_n_steps_keeps_the_last_saves",
    ),
    integer(
        "save_last_n_epochs",
        "Keep the saves by epochs of the last N epochs; 0 or not set: all.",
        minimum=0,
        zero_is_none=True,
        test="test_options_of_training.py::test_save_last_n_epochs_keeps_the_last_saves",
    ),
    integer(
        "save_n_epoch_ratio",
        "About so many saves by epochs over the whole run; above 0 it wins over "
        "save_every_n_epochs.",
        minimum=0,
        zero_is_none=True,
        test="test_resume_commands.py::test_so_many_saves_are_spread_over_the_run",
    ),
    number(
        "save_state_every_minutes",
        "Save what resuming needs so often too, of which the newest is kept; 0 or not set: never.",
        minimum=0,
        zero_is_none=True,
        test="test_resume_commands.py::test_a_state_by_time_replaces_the_one_before",
    ),
    number(
        "ema_decay",
        "Save a moving average of what trains beside it, as NAME-ema; 0.99 to 0.9999.",
        minimum=0,
        maximum=0.999999,
        test="test_resume_commands.py::test_an_average_is_saved_beside_the_adapter_and_survives_a_resumption",
    ),
    flag(
        "save_state",
        "Save what resuming needs beside each adapter, and at the end.",
        test="test_options_of_training.py::test_a_state_is_saved_at_the_end_where_it_is_asked_for",
    ),
    flag(
        "save_state_on_train_end",
        "Save what resuming needs at the end.",
        test="test_options_of_training.py::test_a_state_is_saved_at_the_end_where_it_is_asked_for",
    ),
    integer(
        "save_last_n_steps_state",
        "As save_last_n_steps, for states; 0 or not set: the same.",
        minimum=0,
        zero_is_none=True,
        test="test_options_of_training.py::test_save_last_n_steps_keeps_the_last_saves",
    ),
    integer(
        "save_last_n_epochs_state",
        "As save_last_n_epochs, for states; 0 or not set: the same.",
        minimum=0,
        zero_is_none=True,
        test="test_options_of_training.py::test_save_last_n_epochs_keeps_the_last_saves",
    ),
)

_PREVIEWS: Final = group(
    "Previews",
    TRAINING,
    path(
        "sample_prompts",
        "File of prompts to draw while training, one a line; .toml and .json as in Kohya.",
        commands=(TEXT, TRAIN, ALL),
        beside_file=True,
        test="test_options_of_training.py::test_previews_are_drawn_when_they_are_asked_for",
    ),
    integer(
        "sample_every_n_steps",
        "Steps between previews; 0 or not set: none.",
        minimum=0,
        zero_is_none=True,
        test="test_options_of_training.py::test_previews_are_drawn_when_they_are_asked_for",
    ),
    integer(
        "sample_every_n_epochs",
        "Epochs between previews; 0 or not set: none.",
        minimum=0,
        zero_is_none=True,
        test="test_options_of_training.py::test_previews_are_drawn_when_they_are_asked_for",
    ),
    flag(
        "sample_at_first",
        "Draw previews before the first step too.",
        test="test_options_of_training.py::test_previews_are_drawn_when_they_are_asked_for",
    ),
    text(
        "sample_sampler",
        "Sampler of the previews.",
        default="euler",
        default_note="Kohya's ddim is Stable Diffusion's; with Anima Kohya draws by Euler too.",
        choices=("euler",),
        same_as={"k_euler": "euler"},
        stand_ins=dict.fromkeys(_OTHER_SAMPLERS.split(), _OTHER_SAMPLER),
        test="test_options_of_training.py::test_previews_are_drawn_when_they_are_asked_for",
    ),
)

_LEAKAGE: Final = group(
    "What was learned, and what leaked",
    TRAINING,
    flag(
        "measure_leakage",
        "Measure of every save what it learned, how much of that is bound to the trigger, and what "
        "leaked into unrelated prompts; not set: where there are sample_prompts.",
        default=None,
        asks_nothing=(False,),
        commands=(TEXT, TRAIN, ALL),
        test="test_leakage.py::test_nothing_is_measured_where_it_is_not_wanted",
    ),
)

_METADATA: Final = group(
    "Metadata of saved files",
    TRAINING,
    flag(
        "no_metadata",
        "Say nothing of the run in saved files but what the adapter needs to be read.",
        test="test_metadata.py::test_no_metadata_leaves_what_reading_needs",
    ),
    text(
        "metadata_title",
        "Title; not set: output_name.",
        test="test_metadata.py::test_the_users_own_words_are_in_the_model_spec",
    ),
    text(
        "metadata_author",
        "Author.",
        test="test_metadata.py::test_the_users_own_words_are_in_the_model_spec",
    ),
    text(
        "metadata_description",
        "Description.",
        test="test_metadata.py::test_the_users_own_words_are_in_the_model_spec",
    ),
    text(
        "metadata_license",
        "Licence.",
        test="test_metadata.py::test_the_users_own_words_are_in_the_model_spec",
    ),
    text(
        "metadata_tags",
        "Tags, with commas between them.",
        test="test_metadata.py::test_the_users_own_words_are_in_the_model_spec",
    ),
    text(
        "metadata_usage_hint",
        "How to use it.",
        test="test_metadata.py::test_the_users_own_words_are_in_the_model_spec",
    ),
    text(
        "metadata_thumbnail",
        "Picture: a file, or a data URL.",
        test="test_metadata.py::test_the_users_own_words_are_in_the_model_spec",
    ),
    text(
        "metadata_merged_from",
        "What it was merged from.",
        test="test_metadata.py::test_the_users_own_words_are_in_the_model_spec",
    ),
    text(
        "metadata_trigger_phrase",
        "Words that call the subject, with commas between several; measure_leakage drops them.",
        commands=(TEXT, TRAIN, ALL),
        test="test_metadata.py::test_the_users_own_words_are_in_the_model_spec",
    ),
    text(
        "metadata_preprocessor",
        "Preprocessing of its input.",
        test="test_metadata.py::test_the_users_own_words_are_in_the_model_spec",
    ),
    *no_op(
        "it describes Stable Diffusion's textual inversions",
        text("metadata_is_negative_embedding", "The file is a negative embedding."),
    ),
    *no_op(
        "files are saved as safetensors anyway",
        flag("use_safetensors", "Save as safetensors."),
    ),
)

_UPLOAD: Final = group(
    "Upload",
    TRAINING,
    *no_op(
        "training holds no key to an account and waits for no network; "
        "`hf upload REPOSITORY FILE` uploads what was saved",
        text("huggingface_repo_id", "Repository to upload to."),
        text("huggingface_repo_type", "Its type."),
        text("huggingface_path_in_repo", "Folder in it."),
        text("huggingface_token", "Token that may write to it."),
        text("huggingface_repo_visibility", "Public or private."),
        flag("save_state_to_huggingface", "Upload states."),
        flag("async_upload", "Upload while training."),
    ),
    *refused(
        "training fetches no state from a network",
        "fetch the state folder first (`hf download`), and name it in resume",
        flag("resume_from_huggingface", "Resume from an uploaded state."),
    ),
)

SAVING: Final[tuple[Option, ...]] = (
    *_SAVING,
    *_PREVIEWS,
    *_LEAKAGE,
    *_METADATA,
    *_UPLOAD,
)
