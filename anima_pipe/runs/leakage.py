"""Preparing the measure of what an adapter learned and what leaked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from anima_pipe.dataset.plan import Plan
from anima_pipe.dataset.probes import PictureProbe, Probes
from anima_pipe.dataset.visits import plain_visit
from anima_pipe.hooks.leakage import BestSave, Leakage, told
from anima_pipe.hooks.leakage_meter import LeakageMeter, ProbeVisit, Switched
from anima_pipe.runs.prepare import Training
from anima_pipe.runtime import counted, say
from anima_pipe.shards import Cache
from anima_pipe.shards.keys import text_key


def prepare_leakage(training: Training, probes: Probes | None) -> Leakage | None:
    """Return the hook that measures every save; None, having said why, where none can be.

    Args:
        training: Of the run.
        probes: What is looked at; None: nothing is to be measured, and nothing is said.
    """
    if probes is None:
        return None
    adapter, plan, cache = training.trained, training.batches.plan, training.batches.cache
    if not isinstance(adapter, Switched):
        return _not_measured("the model's own weights train, and cannot be switched off")
    visits = list(_visits(probes.pictures, plan))
    if reason := _lacking(probes, visits, cache):
        return _not_measured(reason)
    pictures, held_out = counted(len(visits), "picture"), bool(plan.held_out)
    say(f"leakage   by {pictures} {'held out' if held_out else 'of those that are trained on'}")
    trigger = ", ".join(probes.trigger) or "none is known; metadata_trigger_phrase names it"
    say(f"trigger   {trigger}")
    unrelated = [text_key(text) for text in probes.unrelated]
    return Leakage(LeakageMeter(training.model_in_use, adapter, visits, unrelated, cache))


def report_best(best: BestSave | None) -> None:
    """Name the save that learned most while leaking least; of one alone nothing is said."""
    if best is None:
        return
    if best.stands_out:
        say(f"best save {best.path}, of {best.among}: {told(best.figures)}")
    else:
        say(
            f"best save none of {best.among}: what they learned, they do to unrelated prompts too, "
            "as a style should"
        )


def _not_measured(reason: str) -> None:
    say(f"leakage   not measured: {reason}")


def _lacking(probes: Probes, visits: Sequence[ProbeVisit], cache: Cache) -> str | None:
    """Return what the measure lacks, and what to do; None: it has everything."""
    texts = set(probes.texts)
    if missing := sum(text_key(text) not in cache.text for text in texts):
        return (
            f"the text cache lacks {missing} of its {len(texts)} texts; run "
            "`anima-pipe encode-text` with the same options, or leave auto_cache on"
        )
    if not visits:
        return "none of the pictures that were chosen for it can be used"
    if not probes.unrelated:
        return "the trigger is in all of its unrelated prompts; name a rarer one"
    return None


def _visits(probes: Sequence[PictureProbe], plan: Plan) -> Iterator[ProbeVisit]:
    """Yield how the pictures are looked at; those that the plan had to leave out are not."""
    samples = (*plan.held_out, *plan.samples)
    found = {(sample.folder, sample.name, sample.texts[0]): sample for sample in samples}
    for probe in probes:
        place = probe.picture.folder, probe.picture.name, text_key(probe.caption)
        if place in found:
            captioned, without = plain_visit(found[place]), probe.without
            yield ProbeVisit(
                captioned=captioned,
                without=None if without is None else replace(captioned, text=text_key(without)),
            )
