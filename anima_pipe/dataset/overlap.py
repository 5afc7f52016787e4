"""Pictures that one subset holds out and another one trains on, which validation cannot judge."""

from __future__ import annotations

from anima_pipe.dataset.survey import Survey
from anima_pipe.records import Skipped


def held_out_but_trained(survey: Survey) -> list[Skipped]:
    """List the pictures that are held out while the same picture is trained on elsewhere.

    Pictures are the same where their files' bytes are, so copies under other names count too.
    """
    trained = {s.content: s.picture.path for s in survey.samples if not s.picture.held_out}
    held_out = {s.picture.path: s.content for s in survey.samples if s.picture.held_out}
    return [
        Skipped(name=str(path), reason=_where(str(path), str(trained[content])))
        for path, content in held_out.items()
        if content in trained
    ]


def _where(held_out: str, trained: str) -> str:
    if held_out == trained:
        return f"{held_out}: listed a second time, without being held out there"
    return f"{held_out}: the same picture as {trained}"
