"""Pictures drawn while training, and their contact sheet."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from anima_pipe.drawing.painter import EncodedPrompt, Painter, parameters_text, save_picture
from anima_pipe.drawing.sheets import cell_of, draw_sheet
from anima_pipe.records import Moment

Show = Callable[[int, Mapping[str, Image.Image]], None]
"""Takes a step and its pictures by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewConfig:
    """Where previews go and when they are drawn; at the end of the run they always are."""

    folder: Path
    name: str
    model: str = ""
    """Name of the base model, for the pictures' metadata."""
    at_first: bool = False
    every_n_steps: int | None = None
    every_n_epochs: int | None = None
    resumed: bool = False
    """The run goes on from a state: pictures of earlier steps in the folder are its own."""


class Previews:
    """The hook that draws every prompt when it is due.

    Args:
        painter: Draws with the model that is trained, adapter and all.
        prompts: What to draw.
        config: Where and when.
        finished: Called when all prompts have been drawn, to give back what drawing needs alone.
    """

    reads_weights = True

    def __init__(
        self,
        painter: Painter,
        prompts: Sequence[EncodedPrompt],
        config: PreviewConfig,
        finished: Callable[[], None] = lambda: None,
    ) -> None:
        self.painter = painter
        self.prompts = prompts
        self.config = config
        self.finished = finished
        self.show: Show = lambda *_: None
        """Told of every picture, by its name."""
        self._columns: dict[int, list[Image.Image]] | None = None

    @property
    def sheet_path(self) -> Path:
        """The contact sheet: one row per prompt, one column per step of drawing."""
        return self.config.folder / f"{self.config.name}.png"

    def due(self, moment: Moment) -> bool:
        """Tell whether previews are due."""
        config = self.config
        if not moment.after_step:
            return config.at_first and moment.step == 0
        return moment.is_last or moment.falls_on(config.every_n_steps, config.every_n_epochs)

    def at(self, moment: Moment) -> None:
        """Draw every prompt, and the contact sheet anew."""
        if self._columns is None:
            self._columns = self._drawn_before(moment.step) if self.config.resumed else {}
        cells: list[Image.Image] = []
        for number, encoded in enumerate(self.prompts):
            picture = self.painter.draw(encoded)
            save_picture(picture, self._path(moment.step, number), self._parameters(encoded))
            self.show(moment.step, {f"sample/{number:02d}": picture})
            cells.append(cell_of(picture))
        self.finished()
        self._columns[moment.step] = cells
        labels = [encoded.prompt.prompt for encoded in self.prompts]
        rows = list(zip(*self._columns.values(), strict=True))
        sheet = draw_sheet(labels, [f"step {step}" for step in self._columns], rows)
        save_picture(sheet, self.sheet_path)

    def _path(self, step: int, number: int) -> Path:
        return self.config.folder / f"{self.config.name}_{step:06d}_{number:02d}.png"

    def _drawn_before(self, now: int) -> dict[int, list[Image.Image]]:
        """Return the cells of earlier steps, of those that have a picture of every prompt.

        A picture of a prompt that was another one then, or had other settings, is none of it.
        """
        name = re.compile(re.escape(self.config.name) + r"_(\d{6,})_00\.png")
        found = [name.fullmatch(path.name) for path in self.config.folder.glob("*_00.png")]
        columns: dict[int, list[Image.Image]] = {}
        for step in sorted(int(match[1]) for match in found if match):
            drawn = [
                _read_cell(self._path(step, number), self._parameters(encoded))
                for number, encoded in enumerate(self.prompts)
            ]
            cells = [cell for cell in drawn if cell]
            if step < now and len(cells) == len(drawn):
                columns[step] = cells
        return columns

    def _parameters(self, encoded: EncodedPrompt) -> str:
        return parameters_text(encoded.prompt, self.config.model)


class DrawingAlong:
    """The hook that runs the model along with the process that draws previews, and keeps nothing.

    Where the model is sharded over the processes, none of them can run it alone.

    Args:
        previews: What the other one draws.
    """

    reads_weights = True

    def __init__(self, previews: Previews) -> None:
        self.previews = previews

    def due(self, moment: Moment) -> bool:
        """Tell whether previews are due."""
        return self.previews.due(moment)

    def at(self, moment: Moment) -> None:
        """Run the model as often as the other one does."""
        del moment
        for encoded in self.previews.prompts:
            self.previews.painter.denoise(encoded)


def _read_cell(path: Path, parameters: str) -> Image.Image | None:
    """Return the cell of a picture, if there is one that was drawn with these parameters."""
    if not path.exists():
        return None
    with Image.open(path) as picture:
        is_same = picture.info.get("parameters") == parameters
        return cell_of(picture.convert("RGB")) if is_same else None
