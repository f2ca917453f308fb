"""Discussions and pull requests: list, details, create, comment, rename, close, merge."""

from __future__ import annotations

from .objects import Commit, merge_trees
from .payloads import comment_event, event, thread_details, thread_summary
from .state import (
    MAIN,
    OPEN,
    DiscussionView,
    HubError,
    HubState,
    Json,
    Repo,
    Thread,
    User,
)
from .web import API, Call, Response, json_response, route


def open_thread(
    state: HubState, repo: Repo, user: str, title: str, description: str, *, base: str | None
) -> Thread:
    """Open a discussion, or a pull request from `base`; the description is its first comment."""
    thread = state.open_thread(repo, title=title, description=description, author=user, base=base)
    if description:
        comment_event(state, thread, user, description)
    return thread


def set_status(state: HubState, repo: Repo, thread: Thread, user: str, status: str) -> Json:
    """Close or reopen a thread; returns the event."""
    if thread.status == "merged":
        raise HubError(409, f"Pull request {thread.number} is merged already")
    thread.status = status
    state.announce(f"{status}  {repo.page}/discussions/{thread.number}  by {user}")
    return event(state, thread, user, "status-change", {"status": status})


def merge(state: HubState, repo: Repo, thread: Thread, user: str) -> Commit:
    """Bring a pull request's changes onto main as one commit."""
    if thread.base is None or thread.ref is None:
        raise HubError(400, f"Discussion {thread.number} is no pull request")
    if thread.status not in OPEN:
        raise HubError(409, f"Pull request {thread.number} is {thread.status}")
    base, theirs = repo.commits[thread.base].tree, repo.resolve(thread.ref).tree
    tree, conflicts = merge_trees(base, repo.main.tree, theirs)
    if conflicts:
        raise HubError(409, f"Conflicts in {', '.join(conflicts)}")
    title = f"{thread.title} (#{thread.number})"
    commit = state.add_commit(repo, MAIN, tree, title=title, author=user)
    set_status(state, repo, thread, user, "merged")
    thread.merge_commit = commit.sha
    return commit


def view(repo: Repo, thread: Thread) -> DiscussionView:
    """A thread as tests see it; the description is not among the comments."""
    texts = [item["data"]["latest"]["raw"] for item in thread.events if item["type"] == "comment"]
    return DiscussionView(
        number=thread.number,
        title=thread.title,
        description=thread.description,
        status=thread.status,
        author=thread.author,
        comments=tuple(texts[1:] if thread.description else texts),
        is_pull_request=thread.is_pull_request,
        ref=thread.ref,
        base=thread.base,
        head=repo.refs.get(thread.ref) if thread.ref else None,
    )


def list_threads(call: Call) -> Response:
    """One page of the discussions that the filters let through, newest first."""
    repo, request = call.repo(), call.request
    kind, author = request.param("type", "all"), request.param("author")
    statuses = {"open": OPEN, "closed": ("closed", "merged")}.get(request.param("status"))
    threads = [
        thread
        for thread in reversed(repo.threads)
        if (kind == "all" or thread.is_pull_request == (kind == "pull_request"))
        and (statuses is None or thread.status in statuses)
        and (not author or thread.author == author)
    ]
    start = int(request.param("p") or 0) * call.state.page_size
    page = threads[start : start + call.state.page_size]
    found = [thread_summary(repo, thread) for thread in page]
    return json_response({"count": len(threads), "start": start, "discussions": found})


def get_thread(call: Call) -> Response:
    """A discussion with its events and, for a pull request, its diff."""
    repo = call.repo()
    thread = repo.thread(int(call.parts["num"]))
    return json_response(thread_details(repo, thread, call.request.base_url))


def post_thread(call: Call) -> Response:
    """Open a discussion, or a pull request without commits: a draft."""
    repo, user, body = call.repo(), call.writer(), call.request.json()
    wants_pr = bool(body.get("pullRequest"))
    base = repo.main.sha if wants_pr else None
    thread = open_thread(call.state, repo, user.name, body["title"], body["description"], base=base)
    if thread.ref is not None:
        thread.status = "draft"
        repo.refs[thread.ref] = repo.main.sha
    url = f"{call.request.base_url}/{repo.page}/discussions/{thread.number}"
    return json_response({"num": thread.number, "pullRequest": wants_pr, "url": url})


def post_comment(call: Call) -> Response:
    """Comment on a thread."""
    repo, user, thread = _thread_and_writer(call)
    message = comment_event(call.state, thread, user.name, call.request.json()["comment"])
    call.state.announce(f"comment  {repo.page}/discussions/{thread.number}  by {user.name}")
    return json_response({"newMessage": message})


def post_status(call: Call) -> Response:
    """Close or reopen a thread, with a comment if the body has one."""
    repo, user, thread = _thread_and_moderator(call)
    body = call.request.json()
    if body.get("status") not in ("open", "closed"):
        raise HubError(400, "status must be open or closed")
    if body.get("comment"):
        comment_event(call.state, thread, user.name, body["comment"])
    return json_response(
        {"newStatus": set_status(call.state, repo, thread, user.name, body["status"])}
    )


def post_title(call: Call) -> Response:
    """Rename a thread."""
    _, user, thread = _thread_and_moderator(call)
    data = {"from": thread.title, "to": call.request.json()["title"]}
    thread.title = data["to"]
    return json_response({"newTitle": event(call.state, thread, user.name, "title-change", data)})


def post_merge(call: Call) -> Response:
    """Merge a pull request; only those who may write to the repository can."""
    repo, user, thread = _thread_and_writer(call)
    if not repo.writable_by(user):
        raise HubError(403, "Forbidden: only those with write access can merge")
    merge(call.state, repo, thread, user.name)
    return json_response({})


def _thread_and_writer(call: Call) -> tuple[Repo, User, Thread]:
    repo = call.repo()
    return repo, call.writer(), repo.thread(int(call.parts["num"]))


def _thread_and_moderator(call: Call) -> tuple[Repo, User, Thread]:
    repo, user, thread = _thread_and_writer(call)
    if user.name != thread.author and not repo.writable_by(user):
        raise HubError(403, "Forbidden: only its author and the repository's owners may do this")
    return repo, user, thread


_THREAD = API + r"/discussions/(?P<num>\d+)"
ROUTES = (
    route("GET", API + r"/discussions", list_threads),
    route("POST", API + r"/discussions", post_thread),
    route("GET", _THREAD, get_thread),
    route("POST", _THREAD + r"/comment", post_comment),
    route("POST", _THREAD + r"/status", post_status),
    route("POST", _THREAD + r"/title", post_title),
    route("POST", _THREAD + r"/merge", post_merge),
)
