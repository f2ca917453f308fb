"""The command as users run it: a process with arguments, two streams and an exit code."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hf_amdet import demo
from hf_amdet.report.files import load, validate, write_report
from tests import towers
from tests.hub_double import HubDouble
from tests.report import samples

SECRET = "hf_nobody_may_read_this"


def _environment(
    tmp_path: Path, endpoint: str = "http://127.0.0.1:9", **more: str
) -> dict[str, str]:
    """No home, no login; port 9 is where nothing listens."""
    kept = {"PATH": os.environ["PATH"], "HF_HUB_DISABLE_XET": "1"}
    temporary = tmp_path / "temporary"
    temporary.mkdir(exist_ok=True)
    own = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": endpoint, "TMPDIR": str(temporary)}
    return kept | own | more


def _run(*arguments: object, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "hf_amdet", *map(str, arguments)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def _python(program: str) -> str:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _left_behind(tmp_path: Path) -> list[Path]:
    """Temporary files that are ours; torch keeps a cache folder of its own there."""
    return list((tmp_path / "temporary").glob("hf-amdet*"))


@pytest.fixture
def suspect(tmp_path: Path) -> Path:
    return towers.save(towers.make_model(drift=0.01), tmp_path / "suspect")


@pytest.fixture
def anchor(tmp_path: Path) -> Path:
    return towers.save(towers.make_model(), tmp_path / "anchor")


def test_help_starts_without_torch() -> None:
    program = "import sys, hf_amdet.cli; print(not {'torch', 'transformers'} & set(sys.modules))"
    assert _python(program) == "True"


def test_the_library_names_what_it_promises() -> None:
    program = (
        "import hf_amdet, sys; assert 'torch' not in sys.modules\n"
        "import hf_amdet.pipeline\n"
        "from hf_amdet import scan, ScanConfig, Report, Verdict; print(callable(scan))"
    )
    assert _python(program) == "True"


def test_a_scan_prints_json_into_a_pipe_and_keeps_its_results(
    suspect: Path, anchor: Path, tmp_path: Path
) -> None:
    output = tmp_path / "results"
    done = _run(
        *("scan", suspect, "--anchor", anchor, "--output", output, "--device", "cpu"),
        environment=_environment(tmp_path),
    )

    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    validate(printed)
    assert printed == json.loads((output / "report.json").read_text())
    assert str(output) in done.stderr
    assert printed["verdict"] == "no_evidence"  # of which no landscape is drawn
    assert {path.name for path in output.iterdir()} == {
        *("report.json", "report.md", "report.html", "inversion.png"),
        *("trigger_embedding.safetensors", "textual_inversion.safetensors"),
    }
    assert _left_behind(tmp_path) == []


def test_quiet_says_nothing_but_the_report(suspect: Path, anchor: Path, tmp_path: Path) -> None:
    done = _run(
        *("scan", suspect, "--anchor", anchor, "-q", "--format", "human", "--restarts", "1"),
        environment=_environment(tmp_path),
    )

    assert done.stderr == ""
    assert "NO EVIDENCE" in done.stdout
    assert "consistency_gap" in done.stdout
    assert "Not covered" in done.stdout


def test_a_repo_is_scanned_and_published_by_its_owner(
    suspect: Path, anchor: Path, hub: HubDouble, tmp_path: Path
) -> None:
    hub.add_user(SECRET, "alice", orgs=["org"])
    for name, folder in (("suspect", suspect), ("anchor", anchor)):
        hub.add_repo(f"org/{name}", {path.name: path.read_bytes() for path in folder.iterdir()})
    environment = _environment(tmp_path, hub.endpoint, HF_TOKEN=SECRET)
    arguments = ("scan", "org/suspect", "--anchor", "org/anchor", "--publish", "pr")

    first, second = (_run(*arguments, environment=environment) for _ in range(2))

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    (pull,) = hub.pull_requests("org/suspect")
    assert "Published" in first.stderr
    assert f"/discussions/{pull.number}" in first.stderr
    assert "stands already" in second.stderr
    files = hub.files("org/suspect", pull.ref or "")
    validate(json.loads(files["amdet/report.json"]))
    assert b"amdet:" in files["README.md"]
    assert "README.md" not in hub.files("org/suspect")
    assert SECRET not in first.stdout + first.stderr + files["README.md"].decode()


def test_what_cannot_be_reached_is_an_error_and_no_verdict(tmp_path: Path) -> None:
    done = _run("scan", "org/model", environment=_environment(tmp_path))

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error (hub_unavailable):")
    assert "org/model" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("scan",), "Missing argument"),
        (("scan", "org/model", "--profile", "fast"), "fast"),
        (("scan", "org/model", "--publish-flagged"), "needs --publish"),
        (("scan", "org/model", "--restarts", "0"), "restarts must be 1 to 64"),
        (("scan", "./nowhere"), "nowhere"),
        (("scan", "org/model@main", "--revision", "other"), "other"),
        (("scan", "org/model", "--prompts", "nowhere.txt"), "neither a text file nor"),
        (("scan", "org/model", "--device", "abacus"), "abacus"),
        (("report", "show", "nowhere.json"), "nowhere.json"),
        (("wash",), "No such command"),
    ],
)
def test_wrong_usage_is_named(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = _run(*arguments, environment=_environment(tmp_path))

    assert done.returncode == 2
    assert says in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_a_tower_that_cannot_be_read_exits_3_with_a_report(
    suspect: Path, anchor: Path, tmp_path: Path
) -> None:
    (suspect / "model.safetensors").rename(suspect / "pytorch_model.bin")
    done = _run("scan", suspect, "--anchor", anchor, environment=_environment(tmp_path))

    assert done.returncode == 3
    assert json.loads(done.stdout)["verdict"] == "not_scanned"


def test_results_that_cannot_be_written_are_an_error(
    suspect: Path, anchor: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file, no folder")
    done = _run(
        *("scan", suspect, "--anchor", anchor, "--restarts", "1", "--output"),
        tmp_path / "taken" / "results",
        environment=_environment(tmp_path),
    )

    assert done.returncode == 2
    assert "Error (output):" in done.stderr
    assert json.loads(done.stdout)["verdict"] == "no_evidence", "the report is not lost"


@pytest.mark.parametrize("taker", ["| true", "> /dev/full"])
def test_an_output_that_nobody_takes_is_an_error_and_loses_nothing(
    suspect: Path, anchor: Path, tmp_path: Path, taker: str
) -> None:
    output = tmp_path / "results"
    command = [sys.executable, "-m", "hf_amdet", "scan", str(suspect), "--anchor", str(anchor)]
    command += ["--restarts", "1", "--output", str(output), "--format", "json"]
    line = f"{shlex.join(command)} {taker}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line],
        env=_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert load(output / "report.json").verdict == "no_evidence"


def test_the_known_anchors_are_listed_without_a_network(tmp_path: Path) -> None:
    environment = _environment(tmp_path)

    listed = _run("anchors", environment=environment)
    told = _run("anchors", "--format", "human", environment=environment)

    entries = {entry["repo_id"]: entry for entry in json.loads(listed.stdout)}
    large = entries["openai/clip-vit-large-patch14"]
    assert large["revision"] == "32bd64288804d66eefd0ccbe215aa642df71cc41"
    assert large["text"]["hidden_size"] == 768
    assert (listed.returncode, listed.stderr) == (0, "")
    assert all(name in told.stdout for name in entries)


def test_why_a_target_has_no_anchor_is_told(suspect: Path, tmp_path: Path) -> None:
    environment = _environment(tmp_path)

    done = _run("anchors", suspect, environment=environment)
    told = _run("anchors", suspect, "--format", "human", "-q", environment=environment)

    (entry,) = json.loads(done.stdout)
    assert (entry["path"], entry["chosen"]) == ("", None)
    misfits = {candidate["anchor"]: candidate["misfit"] for candidate in entry["considered"]}
    assert all(misfits.values())
    assert any("hidden_size is 768, the suspect's 32" in misfit for misfit in misfits.values())
    assert "no anchor" in told.stdout and "hidden_size" in told.stdout
    assert done.returncode == told.returncode == 0


def test_anchors_that_cannot_be_reached_are_an_error(tmp_path: Path) -> None:
    done = _run("anchors", "org/model", environment=_environment(tmp_path))

    assert done.returncode == 2
    assert "hub_unavailable" in done.stderr and "Traceback" not in done.stderr


def test_what_nobody_expected_is_no_verdict(tmp_path: Path) -> None:
    program = (
        "import sys; from hf_amdet.cli import app; from unittest import mock\n"
        "with mock.patch('hf_amdet.pipeline.run', side_effect=ZeroDivisionError('oh')):\n"
        "    app.main(['scan', 'org/model'])"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, env=_environment(tmp_path), capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert "ZeroDivisionError" in done.stderr
    assert "Nothing was concluded" in done.stderr


@pytest.mark.parametrize("wait", [0.5, 4.0], ids=["while it starts", "while it scans"])
def test_an_interrupt_exits_130_and_leaves_nothing_behind(tmp_path: Path, wait: float) -> None:
    output = tmp_path / "results"
    arguments = [str(demo.BACKDOORED), "--anchor", str(demo.ANCHOR), "--profile", "paper"]
    running = subprocess.Popen(
        [sys.executable, "-m", "hf_amdet", "scan", *arguments, "--output", str(output)],
        env=_environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(wait)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)

    # Interrupted within an `exec` of a string, as dataclasses are made, Python ends by the signal
    # even though it was caught; a shell calls that 130 too.
    assert running.returncode in (130, -signal.SIGINT), err
    assert "Interrupted." in err
    assert out == ""
    assert "Traceback" not in err
    assert not output.exists()
    assert _left_behind(tmp_path) == []


def test_a_report_is_shown_and_validated(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    write_report(samples.flagged(), file)
    environment = _environment(tmp_path)

    shown = _run("report", "show", file, "--format", "human", environment=environment)
    valid = _run("report", "validate", file, environment=environment)
    document = json.loads(file.read_text()) | {"verdict": "safe"}
    file.write_text(json.dumps(document))
    invalid = _run("report", "validate", file, environment=environment)

    assert (shown.returncode, valid.returncode, invalid.returncode) == (0, 0, 2)
    assert "FLAGGED" in shown.stdout
    assert "verdict" in invalid.stderr


def test_what_a_repo_says_cannot_drive_the_terminal(tmp_path: Path) -> None:
    hidden = "org/\x1b[2Jmodel"
    report = samples.flagged(target=hidden, not_covered=(hidden,))
    file = tmp_path / "report.json"
    write_report(report, file)

    shown = _run("report", "show", file, "--format", "human", environment=_environment(tmp_path))

    assert "\x1b" not in shown.stdout


def test_env_names_versions_and_no_secrets(tmp_path: Path) -> None:
    done = _run("env", environment=_environment(tmp_path, HF_TOKEN=SECRET))

    assert done.returncode == 0
    assert f"torch: {torch.__version__}" in done.stdout
    assert "logged in: yes" in done.stdout
    assert SECRET not in done.stdout + done.stderr


def test_the_demo_finds_the_backdoor_and_clears_no_one(tmp_path: Path) -> None:
    done = _run("demo", "--output", tmp_path / "demo", environment=_environment(tmp_path))

    assert done.returncode == 0, done.stdout + done.stderr
    backdoored = load(tmp_path / "demo" / "results" / "backdoored" / "report.json")
    clean = load(tmp_path / "demo" / "results" / "clean" / "report.json")
    assert (backdoored.verdict, backdoored.exit_code) == ("flagged", 1)
    assert (clean.verdict, clean.exit_code) == ("no_evidence", 0)
    assert backdoored.towers[0].score is not None
    assert clean.towers[0].score is not None
    assert backdoored.towers[0].score > 0.3 > 0.1 > clean.towers[0].score
    assert (tmp_path / "demo" / "backdoored" / "model.safetensors").exists()
