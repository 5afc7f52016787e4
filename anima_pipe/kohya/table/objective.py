"""Options of the objective: noise levels, noise, loss."""

from typing import Final

from anima_pipe.kohya.rows import (
    TRAINING,
    Option,
    Refused,
    flag,
    group,
    integer,
    number,
    refused,
    text,
)

_LATER_SAMPLING: Final = Refused("it is not supported yet", "use sigmoid, or shift")

_FLOW: Final = group(
    "Noise levels",
    TRAINING,
    text(
        "timestep_sampling",
        "How noise levels are drawn; sigmoid is what Anima's author uses.",
        default="sigmoid",
        default_note="Kohya's. The seed's logit_normal is shift here, with its flow shift.",
        aliases=("anima_timestep_sampling", "timestep_sample_method"),
        choices=("sigmoid", "uniform", "shift"),
        same_as={"logit_normal": "shift"},
        refused_values={"sigma": _LATER_SAMPLING, "flux_shift": _LATER_SAMPLING},
    ),
    number(
        "sigmoid_scale",
        "Standard deviation of the normal draw before the sigmoid; 1 to 1.3.",
        default=1.0,
        aliases=("anima_sigmoid_scale",),
        minimum=0,
        acts_with=("timestep_sampling", ("sigmoid", "shift")),
    ),
    number(
        "discrete_flow_shift",
        "Pushes noise levels towards noise under timestep_sampling shift; 1 leaves them.",
        default=1.0,
        default_note="Kohya's. The seed's 3.0 is an inference setting.",
        aliases=("anima_flow_shift",),
        minimum=0,
        acts_with=("timestep_sampling", ("shift",)),
    ),
    *refused(
        "narrowing the noise levels is not supported yet",
        "remove it",
        integer("min_timestep", "Lowest noise level, of 1000.", asks_nothing=(0,)),
        integer("max_timestep", "Highest noise level, of 1000.", asks_nothing=(1000,)),
    ),
    *refused(
        "weighting by noise level is not supported yet",
        "remove it, or set it to uniform",
        text(
            "weighting_scheme",
            "Weight of the loss by noise level.",
            default="uniform",
            asks_nothing=("none",),
        ),
        number("logit_mean", "Mean of the scheme logit_normal.", default=0.0),
        number("logit_std", "Standard deviation of the scheme logit_normal.", default=1.0),
        number("mode_scale", "Scale of the scheme mode.", default=1.29),
    ),
    *refused(
        "drawing the noise levels is not supported yet",
        "remove it",
        text("show_timesteps", "Draw the noise levels and end."),
        text("show_timesteps_resolution", "Picture size for that.", default="1024"),
        number("show_timesteps_offset", "Offset for that.", default=0.0),
    ),
)

_NOISE_AND_LOSS: Final = group(
    "Noise and loss",
    TRAINING,
    *refused(
        "changed noise is not supported yet",
        "remove it, or set it to 0",
        number(
            "noise_offset",
            "Strength of a constant added to each channel's noise.",
            aliases=("anima_noise_offset",),
            asks_nothing=(0,),
        ),
        flag("noise_offset_random_strength", "Draw that strength for each sample."),
        integer("multires_noise_iterations", "Layers of coarser noise.", asks_nothing=(0,)),
        number(
            "multires_noise_discount",
            "Strength of each further layer.",
            default=0.3,
            asks_nothing=(0,),
        ),
        number("ip_noise_gamma", "Noise on the noisy input.", asks_nothing=(0,)),
        flag("ip_noise_gamma_random_strength", "Draw that strength for each sample."),
    ),
    *refused(
        "losses other than the mean square error are not supported yet",
        "remove it, or set loss_type to l2",
        text("loss_type", "Kind of loss.", default="l2"),
        text("huber_schedule", "How huber_c follows the noise level.", default="snr"),
        number("huber_c", "Where the Huber loss turns linear.", default=0.1),
        number("huber_scale", "Factor on huber_c.", default=1.0),
    ),
    *refused(
        "it concerns Stable Diffusion's noise schedule; Anima is trained by rectified flow",
        "remove it; timestep_sampling says which noise levels are trained most",
        flag("v2", "The base is Stable Diffusion 2."),
        flag("v_parameterization", "The base predicts Stable Diffusion's v."),
        flag("zero_terminal_snr", "Let the schedule end in pure noise."),
        flag("scale_v_pred_loss_like_noise_pred", "Weight v-prediction as noise prediction."),
        flag("debiased_estimation_loss", "Weight the loss by the schedule's noise."),
        number("min_snr_gamma", "Limit of the weight by signal to noise.", asks_nothing=(0,)),
        number("v_pred_like_loss", "Share of a v-prediction loss.", asks_nothing=(0,)),
        number("adaptive_noise_scale", "Adapts noise_offset to the latent.", asks_nothing=(0,)),
    ),
)

OBJECTIVE: Final[tuple[Option, ...]] = (*_FLOW, *_NOISE_AND_LOSS)
