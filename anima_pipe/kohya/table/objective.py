"""Options of the objective: noise levels, noise, loss."""

from typing import Final

from anima_pipe.kohya.rows import (
    TRAIN,
    TRAINING,
    Option,
    flag,
    group,
    integer,
    no_op,
    number,
    refused,
    size,
    text,
)

_FLOW: Final = group(
    "Noise levels",
    TRAINING,
    text(
        "timestep_sampling",
        "How noise levels are drawn; sigmoid is what Anima's author uses, sigma goes by "
        "weighting_scheme.",
        default="sigmoid",
        default_note="Kohya's. The seed's logit_normal is shift here, with its flow shift.",
        aliases=("anima_timestep_sampling", "timestep_sample_method"),
        choices=("sigmoid", "uniform", "shift", "flux_shift", "sigma"),
        same_as={"logit_normal": "shift"},
        test="test_options_of_the_objective.py::test_noise_levels_are_drawn_as_the_options_say",
    ),
    number(
        "sigmoid_scale",
        "Standard deviation of the normal draw before the sigmoid; 1 to 1.3.",
        default=1.0,
        aliases=("anima_sigmoid_scale",),
        minimum=0,
        acts_with=("timestep_sampling", ("sigmoid", "shift", "flux_shift")),
        test="test_options_of_the_objective.py::test_noise_levels_are_drawn_as_the_options_say",
    ),
    number(
        "discrete_flow_shift",
        "Pushes noise levels towards noise under timestep_sampling shift and sigma; 1 leaves them.",
        default=1.0,
        default_note="Kohya's. The seed's 3.0 is an inference setting.",
        aliases=("anima_flow_shift",),
        minimum=0,
        acts_with=("timestep_sampling", ("shift", "sigma")),
        test="test_options_of_the_objective.py::test_noise_levels_are_drawn_as_the_options_say",
    ),
    integer(
        "min_timestep",
        "Lowest noise level, of 1000; all draws are scaled into the range.",
        minimum=0,
        maximum=999,
        test="test_options_of_the_objective.py::test_noise_levels_are_drawn_as_the_options_say",
    ),
    integer(
        "max_timestep",
        "Highest noise level, of 1000.",
        minimum=1,
        maximum=1000,
        test="test_options_of_the_objective.py::test_noise_levels_are_drawn_as_the_options_say",
    ),
    text(
        "weighting_scheme",
        "Weight of the loss by noise level (sigma_sqrt, cosmap), or under timestep_sampling sigma "
        "how levels are drawn (logit_normal, mode).",
        default="uniform",
        choices=("uniform", "none", "sigma_sqrt", "cosmap", "logit_normal", "mode"),
        test="test_options_of_the_objective.py::test_the_loss_is_the_one_that_the_options_name",
    ),
    number(
        "logit_mean",
        "Mean of the scheme logit_normal; above 0 trains more on clean latents.",
        default=0.0,
        acts_with=("weighting_scheme", ("logit_normal",)),
        test="test_options_of_the_objective.py::test_noise_levels_are_drawn_as_the_options_say",
    ),
    number(
        "logit_std",
        "Standard deviation of the scheme logit_normal.",
        default=1.0,
        minimum=0,
        acts_with=("weighting_scheme", ("logit_normal",)),
        test="test_options_of_the_objective.py::test_noise_levels_are_drawn_as_the_options_say",
    ),
    number(
        "mode_scale",
        "Scale of the scheme mode.",
        default=1.29,
        acts_with=("weighting_scheme", ("mode",)),
        test="test_options_of_the_objective.py::test_noise_levels_are_drawn_as_the_options_say",
    ),
    text(
        "show_timesteps",
        "Show which noise levels these options draw and what each weighs, in lines (console) or as "
        "<output_name>-timesteps.png in output_dir (image), and end.",
        choices=("console", "image"),
        commands=(TRAIN,),
        test="test_noise_chart.py::test_the_command_shows_the_noise_levels_and_ends",
    ),
    size(
        "show_timesteps_resolution",
        "Picture size assumed for that, in pixels; it matters under flux_shift.",
        default=(1024, 1024),
        default_note="Kohya's 1024.",
        commands=(TRAIN,),
        test="test_noise_chart.py::test_the_chart_takes_the_size_and_the_offset_asked_for",
    ),
    number(
        "show_timesteps_offset",
        "Offset assumed for that, see custom_attributes of dataset.toml.",
        default=0.0,
        commands=(TRAIN,),
        acts_with=("timestep_sampling", ("sigmoid", "shift", "flux_shift")),
        test="test_noise_chart.py::test_the_chart_takes_the_size_and_the_offset_asked_for",
    ),
)

_NOISE_AND_LOSS: Final = group(
    "Noise and loss",
    TRAINING,
    number(
        "noise_offset",
        "Strength of a number added to each channel's noise; about 0.05.",
        aliases=("anima_noise_offset",),
        minimum=0,
        test="test_options_of_the_objective.py::test_noise_offset_adds_one_number_to_each_channel",
    ),
    flag(
        "noise_offset_random_strength",
        "Draw that strength for each batch, from 0 up to it.",
        test="test_options_of_the_objective.py::test_a_random_strength_is_another_one_in_each_batch_and_never_more",
    ),
    integer(
        "multires_noise_iterations",
        "Layers of coarser noise that are added; 6 to 10.",
        minimum=0,
        test="test_options_of_the_objective.py::test_multires_noise_adds_coarse_layers_each_weaker_by_the_discount",
    ),
    number(
        "multires_noise_discount",
        "Strength of each further layer, relative to the one before.",
        default=0.3,
        minimum=0,
        test="test_options_of_the_objective.py::test_multires_noise_adds_coarse_layers_each_weaker_by_the_discount",
    ),
    number(
        "ip_noise_gamma",
        "Strength of further noise on the input alone; about 0.1.",
        minimum=0,
        test="test_options_of_the_objective.py::test_ip_noise_gamma_adds_noise_to_the_input_alone",
    ),
    flag(
        "ip_noise_gamma_random_strength",
        "Draw that strength for each batch, from 0 up to it.",
        test="test_options_of_the_objective.py::test_a_random_strength_is_another_one_in_each_batch_and_never_more",
    ),
    text(
        "loss_type",
        "How the velocity is compared with its target.",
        default="l2",
        choices=("l2", "l1", "huber", "smooth_l1"),
        test="test_options_of_the_objective.py::test_the_loss_is_the_one_that_the_options_name",
    ),
    text(
        "huber_schedule",
        "How huber_c follows the noise level.",
        default="snr",
        choices=("constant", "exponential", "snr"),
        acts_with=("loss_type", ("huber", "smooth_l1")),
        test="test_options_of_the_objective.py::test_huber_schedule_makes_clean_pictures_count_by_the_square",
    ),
    number(
        "huber_c",
        "Where the Huber losses turn from square to linear.",
        default=0.1,
        minimum=0,
        acts_with=("loss_type", ("huber", "smooth_l1")),
        test="test_options_of_the_objective.py::test_the_loss_is_the_one_that_the_options_name",
    ),
    number(
        "huber_scale",
        "Factor on huber_c.",
        default=1.0,
        minimum=0,
        acts_with=("loss_type", ("huber", "smooth_l1")),
        test="test_options_of_the_objective.py::test_the_loss_is_the_one_that_the_options_name",
    ),
    *no_op(
        "it concerns Stable Diffusion's noise schedule, and Kohya sets it aside for Anima too, "
        "which is trained by rectified flow; timestep_sampling says which noise levels are trained "
        "most",
        flag("v2", "The base is Stable Diffusion 2."),
        flag("v_parameterization", "The base predicts Stable Diffusion's v."),
        flag("zero_terminal_snr", "Let the schedule end in pure noise."),
        flag("scale_v_pred_loss_like_noise_pred", "Weight v-prediction as noise prediction."),
        flag("debiased_estimation_loss", "Weight the loss by the schedule's noise."),
        number("min_snr_gamma", "Limit of the weight by signal to noise.", asks_nothing=(0,)),
        number("v_pred_like_loss", "Share of a v-prediction loss.", asks_nothing=(0,)),
    ),
    *refused(
        "noise_offset is the same for all latents here",
        "remove it; noise_offset alone, or noise_offset_random_strength beside it, is honoured",
        number("adaptive_noise_scale", "Adapts noise_offset to the latent.", asks_nothing=(0,)),
    ),
)

OBJECTIVE: Final[tuple[Option, ...]] = (*_FLOW, *_NOISE_AND_LOSS)
