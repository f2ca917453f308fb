"""A report as Markdown: the section of a model card, the page report.md, and a first card."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined

from hf_amdet.report import escaping
from hf_amdet.report.escaping import Markdown, argument, code, number
from hf_amdet.report.schema import (
    FileRecord,
    Reason,
    Report,
    RunConfig,
    Statistic,
    Threshold,
    TowerReport,
    Verdict,
)

_SENTENCES = {
    Verdict.FLAGGED: "Flagged: this scan found evidence of an injected backdoor.",
    Verdict.NATURAL: (
        "Natural: this scan found a backdoor-like feature that it marks as natural, one that "
        "clean models have too, and no evidence of an injected backdoor."
    ),
    Verdict.NO_EVIDENCE: (
        "No evidence: this method found no injected backdoor. That is no proof that there is none."
    ),
    Verdict.INCONCLUSIVE: ("Inconclusive: there is no answer either way; the reasons say why."),
    Verdict.NOT_SCANNED: (
        "Not scanned: the text encoder could not be read, so there is no verdict."
    ),
}
OBJECTION = (
    "If you think that this result is wrong, open a discussion in the Community tab of this "
    "repository and name the commit."
)
NO_P_VALUE = (
    "Where no p-value stands, no calibration was given: scores of clean variants of the anchor."
)
_SIGNS = {">=": "≥", "<=": "≤", ">": "&gt;", "<": "&lt;"}
_FILES_NAMED = 6
_DEVICE = re.compile(r"cpu|mps|(cuda|xpu)(:\d+)?")


def sentence(verdict: Verdict) -> str:
    """A verdict in plain words, free of markup."""
    return _SENTENCES[verdict]


def section(report: Report) -> str:
    """Our section of a model card, without the markers around it."""
    return _render("safety_section.md.jinja", report)


def page(report: Report) -> str:
    """Everything that the report holds."""
    return _render("report_page.md.jinja", report)


def new_card(report: Report) -> str:
    """The text to begin a model card with where there is none."""
    return _render("new_card.md.jinja", report)


def _render(name: str, report: Report) -> str:
    text = (
        _environment()
        .get_template(name)
        .render(
            report=report,
            sentence=sentence(report.verdict),
            subject=_subject(report),
            date=report.created_at[:10],
            reasons=_reasons(report),
            files=[file.path for tower in report.towers for file in tower.files],
            not_covered=not_covered(report),
            commands=commands(report),
            settings=settings(report.config),
            objection=OBJECTION,
            no_p_value=NO_P_VALUE,
            environment=list(report.environment),
        )
    )
    # Blocks that a report leaves empty leave their blank lines behind.
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(template_source),
        undefined=StrictUndefined,
        # What HTML escaping leaves alone can still be Markdown; `finalize` refuses plain strings.
        autoescape=False,  # noqa: S701
        finalize=escaping.only_escaped,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "code": code,
        "text": escaping.text,
        "number": _number,
        "percent": _percent,
        "sentence": sentence,
        "words": _words,
        "optional": _optional,
        "listing": _listing,
        "behaviour": _behaviour,
        "place": _place,
        "measured": _measured,
        "interval": interval,
        "limit": _limit,
        "statistics": statistics,
        "file_table": _file_table,
    }
    return environment


def template_source(name: str) -> str:
    """The text of a file beside the templates."""
    return (_template_folder() / name).read_text(encoding="utf-8")


def _template_folder() -> Traversable:
    """The templates of the installed package, else those of the source tree."""
    packaged = resources.files("hf_amdet") / "templates"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "model_card_templates"


def _reasons(report: Report) -> list[Reason]:
    """The reasons of the repo and of its towers, each message once."""
    everything = [*report.reasons, *(reason for tower in report.towers for reason in tower.reasons)]
    return list({reason.message: reason for reason in everything}.values())


def not_covered(report: Report) -> list[str]:
    """What the scan did not look at: parts of this repo, then what no scan sees."""
    return [*(reason.message for reason in report.out_of_scope), *report.not_covered]


def settings(config: RunConfig) -> list[tuple[str, object]]:
    """Every setting by its name, those of the profile last."""
    return [
        *((name, value) for name, value in config if name != "settings"),
        *sorted(config.settings.items()),
    ]


def commands(report: Report) -> list[Markdown]:
    """The shell commands that repeat the scan."""
    environment, config = report.environment, report.config
    words = ["hf-amdet scan", argument(report.target, "FOLDER")]
    if report.commit_sha:
        words += ["--revision", argument(report.commit_sha, "COMMIT")]
    words += ["--profile", argument(config.profile, "PROFILE")]
    words += [f"--seed {config.seed} --restarts {config.restarts}"]
    if config.prompts != "embedded":
        words += ["--prompts", argument(config.prompts, "PROMPTS_FILE")]
    if config.anchor is not None:
        words += ["--anchor", argument(config.anchor, "ANCHOR")]
    if _DEVICE.fullmatch(environment.device):
        words += ["--device", environment.device]
    if environment.dtype in ("bf16", "fp32"):
        words += ["--dtype", environment.dtype]
    install = f"pip install hf-amdet=={argument(environment.hf_amdet, 'VERSION')}"
    return [Markdown(install), Markdown(" ".join(words))]


def _subject(report: Report) -> Markdown:
    if report.commit_sha is None:
        return Markdown(f"the folder {code(report.target)}")
    return Markdown(f"commit {code(report.commit_sha)}")


def _listing(paths: Sequence[str]) -> Markdown:
    """How many files, and the names of the first of them."""
    count = "1 file" if len(paths) == 1 else f"{len(paths)} files"
    if not paths:
        return Markdown(count)
    names = ", ".join(code(path) for path in paths[:_FILES_NAMED])
    more = f" and {len(paths) - _FILES_NAMED} more" if len(paths) > _FILES_NAMED else ""
    return Markdown(f"{count}: {names}{more}")


def _words(value: str) -> Markdown:
    return escaping.text(value.replace("_", " "))


def _optional(value: object) -> Markdown:
    return Markdown("none") if value is None else code(value)


def _number(value: float | None) -> Markdown:
    return Markdown("none") if value is None else number(value)


def _percent(share: float) -> Markdown:
    return Markdown(f"{number(100 * share)} %")


def _place(path: str) -> Markdown:
    return code(path) if path else Markdown("at the root")


def interval(statistic: Statistic) -> Markdown:
    """The bounds of a statistic in words."""
    if statistic.low is None or statistic.high is None:
        return Markdown("not measured")
    return Markdown(f"{number(statistic.low)} to {number(statistic.high)}")


def _limit(threshold: Threshold) -> Markdown:
    return Markdown(f"{_SIGNS[threshold.comparison]} {number(threshold.value)}")


def _measured(tower: TowerReport) -> Markdown:
    """Each statistic that was held against a threshold, in the order of the thresholds."""
    parts = []
    for name, statistic, threshold in statistics(tower):
        if threshold is not None:
            bounds = f" ({interval(statistic)})" if statistic.low is not None else ""
            value = f"{number(statistic.value)}{bounds}, {_limit(threshold)}"
            parts.append(f"{code(name)} {value}")
    return Markdown("; ".join(parts) or "nothing")


def _behaviour(measured: Mapping[str, Statistic]) -> Markdown:
    shown = (f"{code(name)} {number(item.value)}" for name, item in sorted(measured.items()))
    return Markdown(", ".join(shown))


def statistics(tower: TowerReport) -> Iterator[tuple[str, Statistic, Threshold | None]]:
    """Every statistic with each of its thresholds; those without one come last."""
    held = [item for item in tower.thresholds if item.statistic in tower.statistics]
    for threshold in held:
        yield threshold.statistic, tower.statistics[threshold.statistic], threshold
    names = {threshold.statistic for threshold in held}
    for name, statistic in sorted(tower.statistics.items()):
        if name not in names:
            yield name, statistic, None


def _file_table(files: Sequence[FileRecord]) -> Markdown:
    rows = ["| File | Bytes | SHA-256 |", "|---|---|---|"]
    for file in files:
        part = f", as declared; {len(file.tensors)} tensors of it were read" if file.tensors else ""
        rows.append(f"| {code(file.path)} | {file.size} | {code(file.sha256)}{part} |")
    return Markdown("\n".join(rows))
