"""The profile `default`: tables and tokenizer, real tokens, embeddings, against the anchor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hf_amdet.detection.config import SweepSettings
from hf_amdet.detection.judges import Measure, Own, measure
from hf_amdet.detection.objective import consistency
from hf_amdet.detection.probes import Probes
from hf_amdet.detection.stages import Candidate, Detection, Run, curvature
from hf_amdet.detection.static import StaticDiff, aligned_rows, compare
from hf_amdet.detection.sweep import Pair, Vocabulary, sweep, two_words
from hf_amdet.detection.texts import shortened
from hf_amdet.detection.verdict import Evidence, conclude_contrast

TOKENS = "real-token"
"""What stands for the objective of a candidate that no inversion made."""


def detect_contrast(run: Run, probes: Probes, prompts: Sequence[str]) -> Detection:
    """All witnesses, one after the other; every candidate is judged on the held-out prompts."""
    thresholds, settings = run.profile.thresholds, run.profile.sweep
    assert thresholds is not None and settings is not None
    with run.watch.measure("static"):
        run.observer.stage("tables and tokenizer", 0)
        static = compare(run.suspect, run.anchor, prompts)
    theirs = run.probes(prompts, run.anchor)
    tokens = real_tokens(run, prompts, probes, theirs, settings)
    found = []
    for number, inversion in enumerate(run.profile.inversions):
        run.observer.stage(f"inversion ({inversion.objective.name})", inversion.steps)
        with run.watch.measure("inversion"):
            search = run.inversion(probes, inversion, 100 + number)
            for step in search:
                run.observer.update(step.index + 1, inversion.steps, step.losses.min().item())
            found.append(search.candidates)
    candidates = (*tokens, *run.judge(probes, found))
    ordinary = _ordinary_consistency(run, theirs)
    conclusion = conclude_contrast(
        [Evidence(c.statistics, c.text, c.token) for c in candidates],
        static,
        ordinary.value,
        thresholds,
    )
    decisive = candidates[conclusion.decisive]
    statistics = {
        **decisive.statistics,
        "ordinary_consistency": ordinary,
        "tokenizer_read_alike": _read_alike(static, prompts),
        **_over_restarts(candidates),
    }
    landscape = None
    # It says what kind of feature was found: where none was, there is nothing to draw.
    if conclusion.answer != "no_evidence":
        landscape = run.landscape(probes, decisive.trigger)
        statistics["positive_curvature_share"] = curvature(landscape)
    curves = {c.objective: c.curve for c in found}
    return Detection(
        conclusion, candidates, statistics, curves, landscape, run.watch.seconds, static
    )


def real_tokens(
    run: Run,
    prompts: Sequence[str],
    ours: Probes,
    theirs: Probes,
    settings: SweepSettings,
) -> tuple[Candidate, ...]:
    """The most suspicious tokens, and the one that unites both towers most."""
    with run.watch.measure("sweep"):
        short = [
            run.probes(prompts, tower, settings.positions).optimise
            for tower in (run.suspect, run.anchor)
        ]
        rows = aligned_rows(run.suspect, run.anchor)
        vocabulary = Vocabulary.of(run.suspect, run.anchor, rows)
        run.observer.stage("sweep of real tokens", len(vocabulary))
        swept = sweep(
            run.suspect,
            run.anchor,
            vocabulary,
            two_words(run.suspect, run.anchor, prompts, run.generator(700)),
            Pair(*short),
            Pair(ours.optimise, theirs.optimise),
            settings,
            run.runtime,
            lambda done: run.observer.update(done, len(vocabulary)),
        )
    found = swept.suspicious
    if swept.shared.ids not in found.ids:
        found = replace(found, ids=torch.cat([found.ids, swept.shared.ids]))
    given = found.ours()
    candidates: list[Candidate] = []
    with run.watch.measure("judges"):
        answers = run.respond(ours, given, Own(theirs.held_out, found.theirs()))
        for token, trigger, responses in zip(found.ids.tolist(), given, answers, strict=True):
            statistics = measure(responses, run.generator(600))
            candidates.append(
                Candidate(
                    TOKENS,
                    len(candidates),
                    -statistics["consistency_gap"].value,
                    0,
                    trigger,
                    statistics,
                    token,
                    shortened(run.suspect.write([token])),
                )
            )
    return tuple(candidates)


@torch.no_grad()
def _ordinary_consistency(run: Run, theirs: Probes) -> Measure:
    """How alike the held-out prompts are to the anchor without any trigger."""
    tokens = theirs.held_out

    def work(part: slice) -> Tensor:
        with run.runtime.precision():
            states = run.anchor.embed(tokens.ids[part])
            return run.anchor.encode(states, tokens.ends[part]).pooled

    with run.watch.measure("judges"):
        pooled = [result for _, result in run.runtime.in_batches(work, len(tokens))]
    value = consistency(torch.cat(pooled)).item()
    return Measure(value, None, None, "cosine", len(tokens))


def _over_restarts(candidates: Sequence[Candidate]) -> dict[str, Measure]:
    """The gap under an embedding of the widest and of the narrowest restart."""
    gaps = [c.statistics["consistency_gap"] for c in candidates if c.token is None]
    values = [gap.value for gap in gaps if math.isfinite(gap.value)] or [math.nan]
    ends = {"embedding_gap": max(values), "embedding_gap_least": min(values)}
    return {
        name: Measure(value, None, None, gaps[0].unit, gaps[0].n) for name, value in ends.items()
    }


def _read_alike(static: StaticDiff, prompts: Sequence[str]) -> Measure:
    return Measure(static.read_alike, None, None, "share of prompts", len(set(prompts)))
