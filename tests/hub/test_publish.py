"""Publishing into a real loopback Hub: nothing lost, nothing twice, nobody surprised."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import HfApi

from hf_amdet.errors import (
    AmdetError,
    CardError,
    ConflictError,
    ForbiddenError,
    HubUnavailableError,
    PublishError,
    UnknownRepoError,
    UsageError,
)
from hf_amdet.hub import publish as module
from hf_amdet.hub.card import BEGIN, read_metadata
from hf_amdet.hub.client import Hub
from hf_amdet.hub.publish import Publication, publish
from hf_amdet.report import files
from hf_amdet.report.schema import Report, Verdict
from tests.hub_double import HubDouble
from tests.report import samples

REPO = samples.REPO_ID
OWNER, VISITOR, READER = "hf_owner_token", "hf_visitor_token", "hf_reader_token"
CARD = b"---\nlicense: mit # as ever\n---\n# Tower\n\nText.\n"

Publish = Callable[..., Publication]


@pytest.fixture
def double(hub: HubDouble) -> HubDouble:
    """A hub with a repo, its owner, a stranger and a token that may only read."""
    hub.add_user(OWNER, "alice", orgs=["owner"])
    hub.add_user(VISITOR, "bob")
    hub.add_user(READER, "carol", role="read")
    hub.add_repo(REPO, {"README.md": CARD, "model.safetensors": b"model.safetensors"})
    return hub


@pytest.fixture
def put(double: HubDouble) -> Publish:
    """`publish` to the double; sleeping fails unless a test allows it."""

    def no_sleep(seconds: float) -> None:
        raise AssertionError(f"slept {seconds} s")

    def call(report: Report, mode: str = "commit", token: str = OWNER, **more: Any) -> Publication:
        hub = Hub(double.endpoint, token)
        return publish(report, mode=mode, hub=hub, **{"sleep": no_sleep, **more})  # type: ignore[arg-type]

    return call


def scanned(double: HubDouble, verdict: Verdict = Verdict.NO_EVIDENCE, **changes: Any) -> Report:
    """A report about what main of the double holds now."""
    make = samples.flagged if verdict is Verdict.FLAGGED else samples.no_evidence
    return make(commit_sha=double.history(REPO)[0].sha, **changes)


def another_tower(report: Report) -> list[dict[str, Any]]:
    """The towers of a report, as if somebody had changed the tower and it had been scanned."""
    towers: list[dict[str, Any]] = report.model_dump(mode="json")["towers"]
    (config,) = (f for f in towers[0]["files"] if f["path"] == "config.json")
    config["sha256"] = samples.digest("another config")
    return towers


def test_commit_holds_card_and_report(double: HubDouble, put: Publish) -> None:
    report = scanned(double)
    done = put(report)
    head, before = double.history(REPO)
    assert done == Publication(f"{double.endpoint}/{REPO}/commit/{head.sha}", "commit", None, True)
    assert before.sha == report.commit_sha
    repo = double.files(REPO)
    assert set(repo) == {"README.md", "amdet/report.json", "model.safetensors"}
    assert repo["amdet/report.json"].decode() == files.to_json(report)
    assert repo["README.md"].startswith(b"---\nlicense: mit # as ever\namdet:\n")
    assert b"---\n# Tower\n\nText.\n\n" + BEGIN in repo["README.md"]
    assert (read_metadata(repo["README.md"]) or {})["commit"] == report.commit_sha


def test_the_same_scan_again_changes_nothing(double: HubDouble, put: Publish) -> None:
    report = scanned(double)
    put(report)
    again = put(report.model_copy(update={"created_at": "2027-01-01T00:00:00Z"}))
    assert again == Publication(f"{double.endpoint}/{REPO}", "commit", None, False)
    assert len(double.history(REPO)) == 2


def test_a_scan_of_our_own_commit_changes_nothing(double: HubDouble, put: Publish) -> None:
    put(scanned(double))
    assert not put(scanned(double)).changed
    assert not put(scanned(double), "pr", VISITOR).changed
    assert double.pull_requests(REPO) == []


@pytest.mark.parametrize("what", ["verdict", "version", "weights", "unread"])
def test_a_new_result_is_published(double: HubDouble, put: Publish, what: str) -> None:
    first = scanned(double)
    if what == "unread":
        first = first.model_copy(update={"towers": ()})
    put(first)
    if what == "verdict":
        second = scanned(double, Verdict.FLAGGED)
    elif what == "version":
        environment = {**first.environment.model_dump(), "hf_amdet": "0.2.0"}
        second = scanned(double, environment=environment)
    elif what == "weights":
        second = scanned(double, towers=another_tower(first))
    else:
        second = scanned(double, towers=())
    assert put(second).changed
    readme = double.files(REPO)["README.md"]
    assert readme.count(BEGIN) == readme.count(b"\namdet:\n") == 1


@pytest.mark.parametrize("mode", ["commit", "pr"])
def test_a_verdict_is_not_put_beside_other_weights(
    double: HubDouble, put: Publish, mode: str
) -> None:
    report = scanned(double)
    double.commit(REPO, {"model.safetensors": b"trained on"})

    with pytest.raises(PublishError, match=r"model\.safetensors.*another file.*kept"):
        put(report, mode)
    assert double.files(REPO)["README.md"] == CARD
    assert not double.pull_requests(REPO)


def test_card_that_moved_on_since_the_scan_is_kept(double: HubDouble, put: Publish) -> None:
    report = scanned(double)
    double.commit(REPO, {"README.md": CARD + b"\nNew words.\n", "notes.txt": b"new"})
    put(report)
    repo = double.files(REPO)
    assert b"\nNew words.\n" in repo["README.md"]
    assert repo["notes.txt"] == b"new"
    assert (read_metadata(repo["README.md"]) or {})["commit"] == report.commit_sha


@pytest.mark.parametrize(
    "card",
    [
        None,
        b"",
        b"# No front matter\n",
        b"---\r\nlicense: mit\r\n---\r\n# T\r\n",
        b"---\nlicense: mit\n---",
    ],
)
def test_every_kind_of_card_is_kept(double: HubDouble, put: Publish, card: bytes | None) -> None:
    double.add_repo(REPO, {"x": b"y"} if card is None else {"x": b"y", "README.md": card})
    put(scanned(double))
    readme = double.files(REPO)["README.md"]
    assert read_metadata(readme) is not None
    if card and b"\r\n" in card:
        assert readme.count(b"\n") == readme.count(b"\r\n")
        assert readme.startswith(b"---\r\nlicense: mit\r\n")
    if not card:
        assert b"\n# owner/clip-tower\n" in readme


def test_pull_request_by_a_stranger(double: HubDouble, put: Publish) -> None:
    report = scanned(double)
    done = put(report, "pr", VISITOR)
    (pull,) = double.pull_requests(REPO)
    url = f"{double.endpoint}/{REPO}/discussions/{pull.number}"
    assert done == Publication(url, "pr", pull.number, True)
    assert (pull.author, pull.base) == ("bob", report.commit_sha)
    assert pull.title.startswith(module.TITLE)
    assert str(report.commit_sha)[:12] in pull.title
    assert str(report.commit_sha) in pull.description
    assert "opt_out: true" in pull.description
    assert double.files(REPO)["README.md"] == CARD
    assert "amdet/report.json" in double.files(REPO, f"refs/pr/{pull.number}")


def test_pull_request_is_updated_in_place(double: HubDouble, put: Publish) -> None:
    first = scanned(double)
    opened = put(first, "pr", VISITOR)
    ref = f"refs/pr/{opened.number}"
    words = double.files(REPO, ref)["README.md"] + b"\nThe owner's words.\n"
    double.commit(REPO, {"README.md": words}, revision=ref)
    double.commit(REPO, {"config.json": b"{}"})
    second = scanned(double, towers=another_tower(first))
    updated = put(second, "pr", VISITOR)
    assert (updated.number, updated.changed) == (opened.number, True)
    (pull,) = double.pull_requests(REPO)
    assert str(second.commit_sha)[:12] in pull.title
    assert str(second.commit_sha) in pull.comments[-1]
    readme = double.files(REPO, ref)["README.md"]
    assert (read_metadata(readme) or {})["commit"] == second.commit_sha
    assert readme.endswith(b"\nThe owner's words.\n")


def test_the_same_scan_leaves_the_pull_request_alone(double: HubDouble, put: Publish) -> None:
    opened = put(scanned(double), "pr", VISITOR)
    before = double.pull_requests(REPO)
    assert put(scanned(double), "pr", VISITOR) == Publication(
        opened.url, "pr", opened.number, changed=False
    )
    assert double.pull_requests(REPO) == before


def test_a_merged_report_is_not_offered_again(double: HubDouble, put: Publish) -> None:
    opened = put(scanned(double), "pr", VISITOR)
    double.merge(REPO, int(opened.number or 0))
    assert not put(scanned(double), "pr", VISITOR).changed
    changed = scanned(double, towers=another_tower(scanned(double)))
    assert put(changed, "pr", VISITOR).number != opened.number


def test_a_closed_report_is_not_offered_again(double: HubDouble, put: Publish) -> None:
    opened = put(scanned(double), "pr", VISITOR)
    double.close(REPO, int(opened.number or 0))
    double.commit(REPO, {"README.md": CARD + b"more\n"})
    again = put(scanned(double), "pr", VISITOR)
    assert (again.number, again.changed) == (opened.number, False)
    anew = put(scanned(double, towers=another_tower(scanned(double))), "pr", VISITOR)
    assert (anew.changed, len(double.pull_requests(REPO))) == (True, 2)


def test_pull_requests_of_others_are_left_alone(double: HubDouble, put: Publish) -> None:
    api = HfApi(double.endpoint, token=OWNER)
    theirs = api.create_pull_request(REPO, f"{module.TITLE}: mine")
    mine = HfApi(double.endpoint, token=VISITOR).create_pull_request(REPO, "Fix a typo")
    opened = put(scanned(double), "pr", VISITOR)
    assert opened.number not in (theirs.num, mine.num)


def test_race_is_won_on_what_the_other_one_wrote(
    double: HubDouble, put: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = scanned(double)
    _race(double, monkeypatch, times=2)
    assert put(report).changed
    readme = double.files(REPO)["README.md"]
    assert b"\nedit 2\n" in readme
    assert read_metadata(readme) is not None


def test_race_that_never_ends_is_a_conflict(
    double: HubDouble, put: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = scanned(double)
    _race(double, monkeypatch, times=99)
    with pytest.raises(ConflictError, match="each of 4 attempts"):
        put(report)
    assert "amdet/report.json" not in double.files(REPO)


def test_race_on_the_pull_request(
    double: HubDouble, put: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scanned(double)
    ref = f"refs/pr/{put(first, 'pr', VISITOR).number}"
    double.commit(REPO, {"config.json": b"{}"})
    _race(double, monkeypatch, times=1, revision=ref)
    put(scanned(double, towers=another_tower(first)), "pr", VISITOR)
    assert b"\nedit 1\n" in double.files(REPO, ref)["README.md"]
    assert len(double.pull_requests(REPO)) == 1


@pytest.mark.parametrize("mode", ["commit", "pr"])
def test_opt_out_is_respected(double: HubDouble, put: Publish, mode: str) -> None:
    card = CARD.replace(b"license: mit", b"amdet: {opt_out: true}")
    double.commit(REPO, {"README.md": card})
    with pytest.raises(PublishError, match="opted out"):
        put(scanned(double), mode)
    assert double.files(REPO)["README.md"] == card
    assert double.pull_requests(REPO) == []


def test_opt_out_in_the_pull_request_is_respected(double: HubDouble, put: Publish) -> None:
    first = scanned(double)
    ref = f"refs/pr/{put(first, 'pr', VISITOR).number}"
    double.commit(REPO, {"README.md": b"---\namdet: {opt_out: true}\n---\n"}, revision=ref)
    with pytest.raises(PublishError, match="opted out"):
        put(scanned(double, towers=another_tower(first)), "pr", VISITOR)


@pytest.mark.parametrize("mode", ["commit", "pr"])
def test_flagged_goes_to_the_owner_first(double: HubDouble, put: Publish, mode: str) -> None:
    report = scanned(double, Verdict.FLAGGED)
    with pytest.raises(PublishError, match=r"told first.*kept.*--publish-flagged"):
        put(report, mode, VISITOR)
    assert {request.method for request in double.requests} == {"GET"}
    assert put(report, "pr", VISITOR, publish_flagged=True).changed


@pytest.mark.parametrize("name", ["owner", "alice"])
def test_owners_publish_flagged_themselves(double: HubDouble, put: Publish, name: str) -> None:
    double.add_user("hf_by_name", name, orgs=[] if name == "owner" else ["owner"])
    assert put(scanned(double, Verdict.FLAGGED), token="hf_by_name").changed


def test_local_targets_cannot_be_published(put: Publish) -> None:
    with pytest.raises(UsageError, match="nowhere to publish"):
        put(samples.no_evidence(repo_id=None, commit_sha=None, target="folder"))


def test_no_token_is_said_before_anything_is_sent(double: HubDouble) -> None:
    with pytest.raises(ForbiddenError, match="needs a token"):
        publish(scanned(double), mode="commit", hub=Hub(double.endpoint))
    assert double.requests == []


def test_a_wrong_token_is_refused(double: HubDouble, put: Publish) -> None:
    for mode in ("commit", "pr"):
        with pytest.raises(AmdetError) as caught:
            put(scanned(double), mode, "hf_wrong_token")
        assert "hf_wrong_token" not in _everything_said(caught.value)


@pytest.mark.parametrize(
    ("mode", "token", "way_out"),
    [
        ("commit", VISITOR, "role `write`.*--publish pr"),
        ("commit", READER, "role `write`.*--publish pr"),
        ("pr", READER, "role `write`.*fine-grained"),
    ],
)
def test_forbidden_names_the_way_out(
    double: HubDouble, put: Publish, mode: str, token: str, way_out: str
) -> None:
    with pytest.raises(ForbiddenError, match=way_out) as caught:
        put(scanned(double), mode, token)
    assert token not in _everything_said(caught.value)
    assert len(double.history(REPO)) == 1


def test_unknown_repo(double: HubDouble, put: Publish) -> None:
    report = scanned(double)
    double.remove_repo(REPO)
    with pytest.raises(UnknownRepoError):
        put(report)


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (b"---\nlicense: [mit\n---\n", "not valid YAML"),
        (b"---\nlicense: nonsense\n---\n", "refused by the Hub:.*license"),
        (b"---\nlicense: mit\n---\ncaf\xe9\n", "not UTF-8 at byte"),
        (b"---\nlicense: mit\n---\n" + BEGIN + b"\n", "keep one of each"),
        (b"x" * (3 << 20), "larger than"),
    ],
)
def test_cards_that_cannot_be_edited(
    double: HubDouble, put: Publish, card: bytes, said: str
) -> None:
    double.commit(REPO, {"README.md": card})
    with pytest.raises(CardError, match=said) as caught:
        put(scanned(double))
    assert len(str(caught.value)) < 600
    assert double.files(REPO)["README.md"] == card


def test_a_damaged_card_is_not_sent_back(double: HubDouble, put: Publish) -> None:
    double.tamper(REPO, "README.md", CARD.replace(b"Text", b"Lies"))
    with pytest.raises(HubUnavailableError, match="did not arrive"):
        put(scanned(double))
    assert len(double.history(REPO)) == 1


@pytest.mark.parametrize("mode", ["commit", "pr"])
@pytest.mark.parametrize(
    ("status", "headers", "waits"),
    [
        (429, {"Retry-After": "7"}, [7.0, 7.0]),
        (429, {"RateLimit": '"api";r=0;t=9'}, [9.0, 9.0]),
        (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, [1.0, 2.0]),
        (503, {}, [1.0, 2.0]),
        (503, {"Retry-After": "3"}, [3.0, 3.0]),
    ],
)
def test_a_busy_hub_is_asked_again(
    double: HubDouble, put: Publish, mode: str, status: int, headers: dict[str, str],
    waits: list[float],
) -> None:  # fmt: skip
    report = scanned(double)
    slept: list[float] = []
    double.fail(2, status=status, match="/commit/", headers=headers)
    assert put(report, mode, sleep=slept.append).changed
    assert slept == waits
    assert len(double.pull_requests(REPO)) == (mode == "pr")


@pytest.mark.parametrize("match", ["whoami", "/discussions", "/paths-info/", "validate-yaml"])
def test_every_request_is_asked_again(double: HubDouble, put: Publish, match: str) -> None:
    report = scanned(double)
    slept: list[float] = []
    double.fail(1, status=503, match=match)
    assert put(report, "pr", sleep=slept.append).changed
    assert slept == [1.0]


def test_patience_ends(double: HubDouble, put: Publish) -> None:
    report = scanned(double)
    slept: list[float] = []
    double.fail(status=503, match="/commit/")
    with pytest.raises(HubUnavailableError, match="503"):
        put(report, sleep=slept.append)
    assert slept == [1.0, 2.0, 4.0, 8.0]


def test_a_long_wait_is_left_to_the_caller(double: HubDouble, put: Publish) -> None:
    report = scanned(double)
    double.fail(1, status=429, match="/commit/", headers={"Retry-After": "290"})
    with pytest.raises(HubUnavailableError, match="asks to wait 290 s"):
        put(report)


def test_an_answer_lost_on_its_way_opens_no_second_pull_request(
    double: HubDouble, put: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = HfApi.create_commit
    report = scanned(double)

    def create_and_lose_the_answer(api: HfApi, *args: Any, **more: Any) -> Any:
        monkeypatch.setattr(HfApi, "create_commit", create)
        create(api, *args, **more)
        double.fail(1, status=503, match="/api/models/")
        return api.model_info(REPO)

    monkeypatch.setattr(HfApi, "create_commit", create_and_lose_the_answer)
    put(report, "pr", VISITOR, sleep=lambda seconds: None)
    assert len(double.pull_requests(REPO)) == 1


def test_a_comment_that_fails_does_not_undo_the_update(double: HubDouble, put: Publish) -> None:
    first = scanned(double)
    put(first, "pr", VISITOR)
    double.commit(REPO, {"config.json": b"{}"})
    second = scanned(double, towers=another_tower(first))
    double.fail(status=503, match="/comment")
    assert put(second, "pr", VISITOR).changed


def test_no_token_in_any_message(double: HubDouble, put: Publish) -> None:
    report = scanned(double)
    for status in (400, 401, 403, 404, 409, 412, 429, 500, 503):
        for match in ("whoami", "validate-yaml", "/commit/", "/discussions", "/preupload/"):
            if match == "/preupload/" and status in (429, 500, 503):
                continue  # huggingface_hub itself waits there, for real
            double.heal()
            double.fail(status=status, match=match)
            with pytest.raises(AmdetError) as caught:
                put(report, "pr", OWNER, sleep=lambda seconds: None)
            assert OWNER not in _everything_said(caught.value)
    assert OWNER not in repr(Hub(double.endpoint, OWNER))


def test_what_is_published_validates(double: HubDouble, put: Publish) -> None:
    put(scanned(double))
    files.validate(json.loads(double.files(REPO)["amdet/report.json"]))


def _race(
    double: HubDouble, monkeypatch: pytest.MonkeyPatch, *, times: int, revision: str = "main"
) -> None:
    """Let somebody else commit to the card between our reading and our writing, `times` times."""
    create = HfApi.create_commit
    done = 0

    def create_commit(api: HfApi, *args: Any, **more: Any) -> Any:
        nonlocal done
        if done < times:
            done += 1
            readme = double.files(REPO, revision)["README.md"] + b"\nedit %d\n" % done
            double.commit(REPO, {"README.md": readme}, revision=revision)
        return create(api, *args, **more)

    monkeypatch.setattr(HfApi, "create_commit", create_commit)


def _everything_said(error: BaseException | None) -> str:
    """The messages of an error and of all that led to it."""
    said = []
    while error is not None:
        said += [str(error), repr(error)]
        error = error.__cause__ or error.__context__
    return "\n".join(said)
