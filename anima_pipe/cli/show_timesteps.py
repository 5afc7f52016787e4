"""--show_timesteps: which noise levels a run would draw, in lines or as a picture."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from anima_pipe.files import make_folder, write_atomically
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.runtime import launched_rank, say, show

if TYPE_CHECKING:
    from anima_pipe.objective.noise_chart import NoiseChart


def show_timesteps(options: Resolved) -> NoiseChart:
    """Show the noise levels that a run with these options draws; nothing is loaded.

    Raises:
        ConfigError: A setting of the noise levels is out of its range, or a picture is asked for
            and there is no output_dir.
        OutputError: The picture cannot be written.
    """
    from anima_pipe.kohya.objective import objective_config
    from anima_pipe.objective.noise_chart import chart_as_text, chart_noise_levels

    as_picture = options.value("show_timesteps") == "image"
    if as_picture:
        options.require("output_dir")
    chart = chart_noise_levels(
        objective_config(options),
        options.value("show_timesteps_resolution"),
        offset=options.value("show_timesteps_offset"),
    )
    # Every process of a launch has the same to show.
    if launched_rank().number == 0:
        if as_picture:
            _write_picture(chart, options)
        else:
            show(*chart_as_text(chart))
    return chart


def _write_picture(chart: NoiseChart, options: Resolved) -> None:
    from anima_pipe.kohya.outputs import output_name, run_folder
    from anima_pipe.objective.noise_chart import chart_as_picture

    folder = run_folder(options)
    offset: float = options.value("show_timesteps_offset")
    title = f"timestep_sampling {options.value('timestep_sampling')}"
    title += f", weighting_scheme {options.value('weighting_scheme')}"
    buffer = io.BytesIO()
    chart_as_picture(chart, f"{title}, offset {offset:g}").save(buffer, "PNG")
    make_folder(folder)
    path = folder / f"{output_name(options)}-timesteps.png"
    write_atomically(path, buffer.getvalue())
    say(f"wrote     {path}")
