"""What a report says of a comparison, beside the detector's own findings."""

from __future__ import annotations

from hf_amdet.encoders.registry import FAR
from hf_amdet.pipeline.anchors import Choice
from hf_amdet.report.schema import AnchorRecord, Reason

BORROWED = Reason(
    code="borrowed_tokenizer",
    message="No tokenizer stands beside the weights, so the anchor's was used, as loaders of such "
    "files do.",
)


def not_vouched(anchor: AnchorRecord) -> Reason:
    """A fine-tune of a poisoned model looks clean beside that model."""
    word = "the card names it" if anchor.chosen_by == "base_model" else "no commit is pinned"
    return Reason(
        code="anchor_not_vouched",
        message=f"Nothing was found beside {anchor.name}, but nobody vouches for that model "
        f"({word}): if it carries the same backdoor, this comparison cannot see it.",
    )


def other_base(base: str, anchor: str) -> Reason:
    """An adapter can be made to look clean on one base and not on the one that users have."""
    return Reason(
        code="base_not_vouched",
        message=f"Nothing was found in {base} with the adapter merged in, but that base, which the "
        f"adapter's owner names, is not the clean tower {anchor}. On another base the adapter "
        "makes another model.",
    )


def no_tokenizer_to_compare(anchor: str) -> Reason:
    return Reason(
        code="anchor_without_tokenizer",
        message=f"{anchor} has no tokenizer, so nothing says how texts should be read: a tokenizer "
        "that reads a text as another one cannot be seen.",
    )


def not_calibrated(anchor: str) -> Reason:
    return Reason(
        code="calibration_misfit",
        message=f"None of the calibrations was made from {anchor} with this profile, these prompts "
        "and this precision, so there is no p-value. Make one with `hf-amdet calibrate`.",
    )


def why_no_anchor(choice: Choice) -> str:
    """No clean tower to compare with: what was considered, and the way out."""
    away = "Pass --anchor with the model that this one was fine-tuned from."
    measured = [c for c in choice.considered if c.distance is not None]
    if measured:
        nearest = min(measured, key=lambda c: c.distance or 0.0)
        return (
            f"The nearest clean tower that is known, {nearest.target}, is {nearest.distance:.2f} "
            f"away (limit {FAR:g}): this is no fine-tune of it. {away}"
        )
    fitting = [c for c in choice.considered if c.fits]
    if fitting:
        return (
            f"The clean tower {fitting[0].target} has this shape, but cannot be read: "
            f"{fitting[0].misfit} {away}"
        )
    return f"No clean tower of this shape is known to compare with. {away}"
