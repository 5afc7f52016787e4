"""Options of the optimizer, the learning rate and the length of training."""

from typing import Final

from anima_pipe.kohya.rows import (
    TRAINING,
    Option,
    Refused,
    count_or_share,
    flag,
    group,
    integer,
    no_op,
    number,
    pairs,
    refused,
    text,
    texts,
)

_ELSEWHERE: Final = Refused(
    "it is an optimizer of another program",
    "install the package that has it, and name it in full: package.module.Class",
)

SCHEDULES: Final = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
    "piecewise_constant",
    "adafactor",
)
_WITH_CYCLES: Final = (
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
)
_WITH_FLOOR: Final = _WITH_CYCLES[1:]
_FOLLOWS_LOSS: Final = Refused(
    "it follows a validation loss after every step, which training does not measure",
    "use cosine, or warmup_stable_decay",
)
_PART_RATE: Final = "; 0: left alone, and not in an adapter's file; not set: learning_rate."

_OPTIMIZER: Final = group(
    "Optimizer and learning rate",
    TRAINING,
    number(
        "learning_rate",
        "Step size; 2e-5 to 1e-4 is usual for adapters.",
        default=2e-6,
        default_note="Kohya's and the seed's, meant for full training: set it.",
        minimum=0,
        test="test_options_of_training.py::test_a_rate_of_zero_trains_nothing",
    ),
    number(
        "unet_lr",
        "The same; wins over learning_rate where both are set.",
        minimum=0,
        test="test_options_of_training.py::test_a_rate_of_zero_trains_nothing",
    ),
    text(
        "optimizer_type",
        "Optimizer: AdamW, AdamW8bit, Prodigy, CAME, Lion, RAdamScheduleFree and the rest of "
        "Kohya's, or package.module.Class.",
        default="AdamW",
        refused_values=dict.fromkeys(("Automagic", "SinkSGD_adv"), _ELSEWHERE),
        test="test_options_of_training.py::test_optimizer_type_and_optimizer_args_shape_the_step",
    ),
    pairs(
        "optimizer_args",
        "Further arguments of the optimizer, such as betas=(0.9,0.99).",
        test="test_options_of_training.py::test_optimizer_type_and_optimizer_args_shape_the_step",
    ),
    number(
        "max_grad_norm",
        "Gradients are scaled down to this norm; 0: never.",
        default=1.0,
        minimum=0,
        zero_is_none=True,
        test="test_options_of_training.py::test_max_grad_norm_scales_the_gradients_down",
    ),
    text(
        "on_nonfinite",
        "Where a loss or gradient is not finite: stop, with the state of the last good step saved, "
        "or skip that step.",
        default="stop",
        choices=("stop", "skip"),
        test="test_nonfinite.py::test_a_run_that_cannot_go_on_leaves_the_state_of_its_last_good_step",
    ),
    text(
        "lr_scheduler",
        "How the learning rate moves; adafactor: by the measure of Adafactor itself, which is its "
        "relative_step=True.",
        default="constant",
        choices=SCHEDULES,
        refused_values={"reduce_lr_on_plateau": _FOLLOWS_LOSS},
        test="test_options_of_training.py::test_the_rate_moves_as_the_schedule_says",
    ),
    count_or_share(
        "lr_warmup_steps",
        "Optimizer steps over which the rate rises from 0, or a share of the run.",
        default=0,
        minimum=0,
        test="test_options_of_training.py::test_the_rate_moves_as_the_schedule_says",
    ),
    number(
        "lr_scheduler_num_cycles",
        "Restarts of cosine_with_restarts; other cosines take half of it.",
        default=1,
        minimum=0,
        acts_with=("lr_scheduler", _WITH_CYCLES),
        test="test_options_of_training.py::test_the_rate_moves_as_the_schedule_says",
    ),
    number(
        "lr_scheduler_power",
        "Exponent of polynomial.",
        default=1.0,
        acts_with=("lr_scheduler", ("polynomial",)),
        test="test_options_of_training.py::test_the_rate_moves_as_the_schedule_says",
    ),
    number(
        "lr_scheduler_min_lr_ratio",
        "Floor of the schedules that have one, as a share of the rate.",
        minimum=0,
        maximum=1,
        acts_with=("lr_scheduler", _WITH_FLOOR),
        test="test_options_of_training.py::test_the_rate_moves_as_the_schedule_says",
    ),
    count_or_share(
        "lr_decay_steps",
        "Steps of the decay at the end of warmup_stable_decay, or a share of the run.",
        default=0,
        minimum=0,
        acts_with=("lr_scheduler", ("warmup_stable_decay",)),
        test="test_schedules.py::test_the_options_reach_the_schedule",
    ),
    integer(
        "lr_scheduler_timescale",
        "Steps of inverse_sqrt over which the rate falls by the root of two; not set: the warmup.",
        minimum=1,
        acts_with=("lr_scheduler", ("inverse_sqrt",)),
        test="test_schedules.py::test_the_options_reach_the_schedule",
    ),
    text(
        "lr_scheduler_type",
        "Class of torch.optim.lr_scheduler, or package.module.Class; wins over lr_scheduler.",
        default="",
        test="test_schedules.py::test_the_options_reach_the_schedule",
    ),
    pairs(
        "lr_scheduler_args",
        "Further arguments of the schedule, such as T_max=1000 or step_rules=1:500,0.1.",
        test="test_schedules.py::test_the_options_reach_the_schedule",
    ),
    *refused(
        "it is no option of Kohya's",
        "write the share into lr_warmup_steps, for example lr_warmup_steps = 0.05; schedule-free "
        "optimizers take neither",
        number("lr_warmup_ratio", "Share of the run over which the rate rises.", default=0),
    ),
    *no_op(
        "Qwen3 is frozen, as in Kohya; the text adapter has llm_adapter_lr",
        texts("text_encoder_lr", "Learning rate of the text encoder.", asks_nothing=(0,)),
    ),
    number(
        "llm_adapter_lr",
        "Learning rate of the text adapter" + _PART_RATE,
        minimum=0,
        test="test_rates_by_part.py::test_a_part_trains_at_its_own_rate_and_at_none_is_not_in_the_file",
    ),
    number(
        "self_attn_lr",
        "Learning rate of self-attention, its norms included" + _PART_RATE,
        minimum=0,
        test="test_rates_by_part.py::test_a_part_trains_at_its_own_rate_and_at_none_is_not_in_the_file",
    ),
    number(
        "cross_attn_lr",
        "Learning rate of cross-attention, its norms included" + _PART_RATE,
        minimum=0,
        test="test_rates_by_part.py::test_a_part_trains_at_its_own_rate_and_at_none_is_not_in_the_file",
    ),
    number(
        "mlp_lr",
        "Learning rate of the mlp layers" + _PART_RATE,
        minimum=0,
        test="test_rates_by_part.py::test_a_part_trains_at_its_own_rate_and_at_none_is_not_in_the_file",
    ),
    number(
        "mod_lr",
        "Learning rate of the modulation layers, which an adapter has where include_patterns "
        "trains them" + _PART_RATE,
        minimum=0,
        test="test_rates_by_part.py::test_a_part_trains_at_its_own_rate_and_at_none_is_not_in_the_file",
    ),
    *refused(
        "it is an old form of optimizer_type",
        "set optimizer_type instead",
        flag("use_8bit_adam", "AdamW8bit."),
        flag("use_lion_optimizer", "Lion."),
    ),
    *no_op(
        "it saves memory alone: gradients are kept for clipping and accumulation, and full_bf16 "
        "halves them",
        flag("fused_backward_pass", "Step each weight as soon as its gradient is there."),
    ),
)

_LENGTH: Final = group(
    "Length of training",
    TRAINING,
    integer(
        "max_train_steps",
        "Optimizer steps.",
        default=1600,
        minimum=1,
        test="test_options_of_training.py::test_the_length_is_given_in_steps_or_epochs",
    ),
    integer(
        "max_train_epochs",
        "Epochs; wins over max_train_steps.",
        minimum=1,
        test="test_options_of_training.py::test_the_length_is_given_in_steps_or_epochs",
    ),
    integer(
        "gradient_accumulation_steps",
        "Batches per optimizer step.",
        default=1,
        minimum=1,
        test="test_options_of_training.py::test_gradient_accumulation_steps_take_several_batches_each",
    ),
    integer(
        "seed",
        "Seed of all draws; not set: drawn and recorded.",
        minimum=0,
        test="test_training_runs.py::test_another_seed_gives_another_adapter",
    ),
    text(
        "resume",
        "Go on from this state folder as if the run had never stopped; latest: from its furthest.",
        test="test_resume_commands.py::test_a_terminated_run_finishes_its_step_and_says_how_to_go_on",
    ),
    texts(
        "resume_allow",
        "What may differ from what the state was made with, such as learning_rate.",
        test="test_resume_commands.py::test_a_state_of_other_options_is_refused_by_their_names",
    ),
    *no_op(
        "a resumed run goes on with the very next sample",
        flag("skip_until_initial_step", "Pass over the samples already seen."),
        flag(
            "anima_resume_snapshot_strict",
            "Refuse a state made with other options; see resume_allow.",
        ),
    ),
    *refused(
        "where a run goes on is in its state",
        "use resume",
        integer("initial_epoch", "Epoch to start counting from."),
        integer("initial_step", "Step to start counting from."),
    ),
    *refused(
        "what may differ from the state is named one by one",
        "use --resume_allow optimizer_type: another optimizer then begins afresh",
        flag(
            "resume_ignore_optimizer_mismatch",
            "Resume although the optimizer differs.",
            default=True,
            asks_nothing=(False,),
        ),
    ),
)

_VALIDATION: Final = group(
    "Validation (of pictures that validation_split holds out)",
    TRAINING,
    integer(
        "validate_every_n_steps",
        "Steps between validations; 0: none by steps.",
        minimum=0,
        zero_is_none=True,
        test="test_validation.py::test_validation_happens_when_it_is_due",
    ),
    integer(
        "validate_every_n_epochs",
        "Epochs between validations; 0: none by epochs, not set: 1, unless validate_every_n_steps "
        "is.",
        default_note="Kohya's 1 holds beside validate_every_n_steps too.",
        minimum=0,
        zero_is_none=True,
        test="test_validation.py::test_validation_happens_when_it_is_due",
    ),
    integer(
        "max_validation_steps",
        "Batches per validation at most; not set: all, 0: none, so that nothing is validated.",
        minimum=0,
        test="test_validation.py::test_a_limit_says_how_many_batches_are_looked_at",
    ),
)

OPTIMIZING: Final[tuple[Option, ...]] = (*_OPTIMIZER, *_LENGTH, *_VALIDATION)
