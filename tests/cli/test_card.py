"""`hf-amdet card preview`: the very change that publishing makes, and nothing is sent."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hf_amdet.cli import app
from hf_amdet.hub.card import MAX_BYTES
from hf_amdet.hub.client import Hub
from hf_amdet.hub.publish import publish
from hf_amdet.report.files import write_report
from hf_amdet.report.schema import Report
from tests.hub_double import HubDouble
from tests.report import samples

REPO = samples.REPO_ID
OWNER = "hf_owner_token"
CARD = b"---\nlicense: mit # as ever\n---\n# Tower\n\nText.\n"
OPTED_OUT = b"---\namdet: {opt_out: true}\n---\n"
WEIGHTS = b"model.safetensors"
CONFIG = b"config.json"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def double(hub: HubDouble, monkeypatch: pytest.MonkeyPatch) -> HubDouble:
    """A hub with the repo that the sample reports are about, which the command speaks to."""
    hub.add_user(OWNER, "alice", orgs=["owner"])
    hub.add_repo(REPO, {"README.md": CARD, "model.safetensors": WEIGHTS})
    monkeypatch.setattr("hf_amdet.hub.client.Hub", partial(Hub, hub.endpoint))
    return hub


@pytest.fixture
def preview(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command's exit code and what is on stdout and stderr."""

    def command(target: object, report: Report, *arguments: object) -> tuple[int, str, str]:
        file = tmp_path / "report.json"
        write_report(report, file)
        with pytest.raises(SystemExit) as end:
            app.main(["card", "preview", *map(str, (target, "--report", file, *arguments))])
        out, err = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, out, err

    return command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model on this disk, with the files that `of_folder` is about."""
    path = tmp_path / "tower"
    path.mkdir()
    for name, data in (
        ("README.md", CARD),
        ("model.safetensors", WEIGHTS),
        ("config.json", CONFIG),
    ):
        (path / name).write_bytes(data)
    return path


def of_repo(double: HubDouble, **changes: Any) -> Report:
    """A report about what main of the double holds now."""
    return samples.no_evidence(commit_sha=double.history(REPO)[0].sha, **changes)


def of_folder(**changes: Any) -> Report:
    tower = samples.no_evidence().towers[0].model_dump(mode="json")
    for record, data in zip(tower["files"], (WEIGHTS, CONFIG), strict=True):
        record["size"] = len(data)
    local = {"target": "tower", "repo_id": None, "commit_sha": None, "towers": [tower]}
    return samples.no_evidence(**{**local, **changes})


def unified(before: bytes, after: bytes, name: str = "a/README.md") -> str:
    old, new = (card.decode().splitlines(keepends=True) for card in (before, after))
    return "".join(difflib.unified_diff(old, new, name, "b/README.md"))


def test_the_diff_is_the_change_that_publishing_makes(double: HubDouble, preview: Run) -> None:
    report = of_repo(double)
    code, out, err = preview(REPO, report)

    assert (code, err) == (0, "")
    assert len(double.history(REPO)) == 1
    assert not double.pull_requests(REPO)
    wrote = {r.path for r in double.requests if r.method != "GET" and "/paths-info/" not in r.path}
    assert not wrote
    publish(report, mode="commit", hub=Hub(double.endpoint, OWNER))
    assert out == unified(CARD, double.files(REPO)["README.md"])
    assert "+amdet:\n" in out and " license: mit # as ever\n" in out


def test_a_published_report_changes_nothing_more(double: HubDouble, preview: Run) -> None:
    report = of_repo(double)
    publish(report, mode="commit", hub=Hub(double.endpoint, OWNER))

    code, out, err = preview(REPO, report)

    assert (code, out) == (0, "")
    assert err.startswith(f"Nothing would change: the card of {REPO} says")


def test_a_repo_without_a_card_gets_one(double: HubDouble, preview: Run) -> None:
    double.add_repo(REPO, {"model.safetensors": WEIGHTS})
    report = of_repo(double)
    code, out, _ = preview(REPO, report)
    publish(report, mode="commit", hub=Hub(double.endpoint, OWNER))
    assert code == 0
    assert out == unified(b"", double.files(REPO)["README.md"], "/dev/null")


@pytest.mark.parametrize("how", ["option", "target"])
def test_the_card_of_a_pull_request_is_previewed_by_its_revision(
    double: HubDouble, preview: Run, how: str
) -> None:
    report = of_repo(double)
    opened = publish(report, mode="pr", hub=Hub(double.endpoint, OWNER))
    ref = f"refs/pr/{opened.number}"

    arguments = (REPO, report, "--revision", ref) if how == "option" else (f"{REPO}@{ref}", report)
    there = preview(*arguments)
    on_main = preview(REPO, report)

    assert there[:2] == (0, "")
    assert "+amdet:" in on_main[1]


def test_an_owner_who_opted_out_is_named(double: HubDouble, preview: Run) -> None:
    double.commit(REPO, {"README.md": OPTED_OUT})
    code, out, err = preview(REPO, of_repo(double))
    assert (code, out) == (2, "")
    assert err.startswith(f"Error (publish): the owner of {REPO} opted out")


def test_a_flagged_report_goes_to_the_owner_first(double: HubDouble, preview: Run) -> None:
    report = samples.flagged(commit_sha=double.history(REPO)[0].sha)
    code, out, err = preview(REPO, report)
    assert code == 0
    assert '+  verdict: "flagged"' in out
    assert "--publish-flagged" in err


def test_a_report_about_another_repo_is_refused(
    double: HubDouble, preview: Run, tmp_path: Path
) -> None:
    code, out, err = preview("owner/other", of_repo(double))
    assert (code, out) == (2, "")
    file = tmp_path / "report.json"
    assert err.startswith(f"Error (usage): {file} is about {REPO}, not about owner/other")
    assert double.requests == []


def test_a_report_about_other_weights_is_refused(double: HubDouble, preview: Run) -> None:
    report = of_repo(double)
    double.commit(REPO, {"model.safetensors": b"trained on"})
    code, out, err = preview(REPO, report)
    assert (code, out) == (2, "")
    assert f"model.safetensors of {REPO} is another file by now" in err


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (b"---\nlicense: [mit\n---\n", "not valid YAML"),
        (b"caf\xe9\n", "not UTF-8 at byte"),
        (b"x" * (MAX_BYTES + 1), "larger than"),
    ],
    ids=["yaml", "latin-1", "endless"],
)
def test_a_card_that_cannot_be_edited_is_an_error_everywhere(
    double: HubDouble, folder: Path, preview: Run, card: bytes, said: str
) -> None:
    double.commit(REPO, {"README.md": card})
    (folder / "README.md").write_bytes(card)
    for code, out, err in (preview(REPO, of_repo(double)), preview(folder, of_folder())):
        assert (code, out) == (2, "")
        assert err.startswith("Error (card): ") and said in err


def test_an_unknown_repo_and_revision_are_errors(double: HubDouble, preview: Run) -> None:
    report = of_repo(double)
    for revision, code in (("nowhere", "unknown_revision"), ("main", "unknown_repo")):
        if code == "unknown_repo":
            double.remove_repo(REPO)
        found = preview(REPO, report, "--revision", revision)
        assert found[:2] == (2, "")
        assert found[2].startswith(f"Error ({code}):") and REPO in found[2]


def test_a_card_that_ends_without_a_line_break_says_so(double: HubDouble, preview: Run) -> None:
    double.commit(REPO, {"README.md": CARD + b"The end."})
    _, out, _ = preview(REPO, of_repo(double))
    assert "-The end.\n\\ No newline at end of file\n+The end.\n" in out


def test_what_a_card_says_cannot_drive_the_terminal(double: HubDouble, preview: Run) -> None:
    double.commit(REPO, {"README.md": b"# Tower\r\n\x1b[2Jcleared \xe2\x80\xae\r\n"})
    code, out, _ = preview(REPO, of_repo(double))
    assert code == 0
    assert "cleared" in out
    assert not {"\x1b", "\r", "\u202e"} & set(out)


def test_a_folder_is_previewed_and_left_alone(folder: Path, preview: Run) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, out, err = preview(folder, of_folder())
    assert (code, err) == (0, "")
    assert out.startswith("--- a/README.md\n+++ b/README.md\n")
    assert " license: mit # as ever\n+amdet:\n" in out
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}

    (folder / "README.md").unlink()
    _, out, _ = preview(folder, of_folder())
    assert out.startswith("--- /dev/null\n+++ b/README.md\n")


def test_a_folder_whose_owner_opted_out_is_named(folder: Path, preview: Run) -> None:
    (folder / "README.md").write_bytes(OPTED_OUT)
    code, out, err = preview(folder, of_folder())
    assert (code, out) == (2, "")
    assert f"the owner of {folder} opted out" in err


def test_a_report_about_another_folder_is_refused(
    folder: Path, preview: Run, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    for target in (tmp_path / "other", tmp_path / "nowhere" / "tower", "owner/clip-tower"):
        code, out, err = preview(target, of_folder())
        assert (code, out) == (2, "")
        assert (
            f"{tmp_path / 'report.json'} is about the local 'tower'" in err and str(target) in err
        )
    code, _, err = preview(folder, of_folder(), "--revision", "main")
    assert code == 2 and "no revision" in err


@pytest.mark.parametrize("change", ["other bytes", "gone", "a link elsewhere"])
def test_a_report_about_other_weights_in_the_folder_is_refused(
    folder: Path, preview: Run, tmp_path: Path, change: str
) -> None:
    weights = folder / "model.safetensors"
    weights.unlink()
    if change == "other bytes":
        weights.write_bytes(WEIGHTS[::-1])
    elif change == "a link elsewhere":
        (tmp_path / "elsewhere").write_bytes(WEIGHTS)
        weights.symlink_to(tmp_path / "elsewhere")
    code, out, err = preview(folder, of_folder())
    assert (code, out) == (2, "")
    assert "model.safetensors" in err
