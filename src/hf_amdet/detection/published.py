"""The profile `paper`: the published search, with its gates on the held-out prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from hf_amdet.detection.config import PaperGates
from hf_amdet.detection.inversion import Inversion, Step
from hf_amdet.detection.judges import Measure, may_pass, paper_shares
from hf_amdet.detection.landscape import Landscape
from hf_amdet.detection.probes import Probes
from hf_amdet.detection.progress import Stopwatch
from hf_amdet.detection.stages import Detection, Run, curvature
from hf_amdet.detection.verdict import conclude_paper, on_foreign_tower


def detect_published(run: Run, probes: Probes, gates: PaperGates) -> Detection:
    """The published search; gates are checked while it runs, and end it when all are passed."""
    (settings,) = run.profile.inversions
    check = _PaperCheck(run, probes, gates)
    inversion = run.inversion(probes, settings, 100)
    run.observer.stage("inversion (published)", settings.steps)
    for step in _timed(inversion, run.watch):
        run.observer.update(step.index + 1, settings.steps, step.running.min().item())
        # As published: the running mean of all steps, looked at every second step.
        if step.index % gates.every == 0:
            if check(step):
                break
            if step.running.min() < gates.epoch_end:
                inversion.end_epoch()
    found = inversion.candidates
    if check.trigger is not None:
        # What the gates looked at last and what the statistics describe must be one trigger.
        found.triggers[check.restart] = check.trigger
    candidates = run.judge(probes, [found])
    running = found.curve.mean(dim=0).min().item()
    shares = check.shares()
    conclusion = conclude_paper(shares, check.positive_share, running, gates, run.profile.landscape)
    if (run.suspect.width, run.suspect.context) != (gates.width, gates.context):
        conclusion = on_foreign_tower(conclusion, gates)
    conclusion = replace(conclusion, decisive=check.restart)
    statistics = {**candidates[check.restart].statistics, **shares}
    statistics["running_loss"] = Measure(running, None, None, "loss", 1)
    if check.positive_share is not None:
        statistics["positive_curvature_share"] = check.positive_share
    curves = {found.objective: found.curve}
    return Detection(conclusion, candidates, statistics, curves, check.landscape, run.watch.seconds)


def _timed(inversion: Inversion, watch: Stopwatch) -> Iterator[Step]:
    """The steps of `inversion`, with only the time inside it measured."""
    steps = iter(inversion)
    while True:
        with watch.measure("inversion"):
            step = next(steps, None)
        if step is None:
            return
        yield step


class _PaperCheck:
    """The published gates 1 to 4 on the held-out prompts, cheapest first."""

    def __init__(self, run: Run, probes: Probes, gates: PaperGates) -> None:
        self._run, self._probes, self._gates = run, probes, gates
        self.restart = 0
        self.trigger: Tensor | None = None
        self.positive_share: Measure | None = None
        self.landscape: Landscape | None = None

    def __call__(self, step: Step) -> bool:
        """Whether a restart passes all gates; keeps the trigger that was looked at last."""
        run, gates, tokens = self._run, self._gates, self._probes.held_out
        for restart in (step.running < gates.running_loss).nonzero().flatten().tolist():
            trigger = step.triggers[restart].clone()
            self.restart, self.trigger = restart, trigger
            self.positive_share = self.landscape = None
            with run.watch.measure("judges"):
                passes = may_pass(run.suspect, run.anchor, tokens, trigger, gates, run.runtime)
            if not passes:
                continue
            self.landscape = run.landscape(self._probes, trigger)
            self.positive_share = curvature(self.landscape)
            if self.positive_share.value > gates.positive_curvature_share:
                return True
        return False

    def shares(self) -> dict[str, Measure]:
        """Of the trigger that was looked at last; empty if none was."""
        if self.trigger is None:
            return {}
        with self._run.watch.measure("judges"):
            (responses,) = self._run.respond(self._probes, self.trigger.unsqueeze(0))
        return paper_shares(responses, self._gates)
