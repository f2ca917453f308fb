"""Minimal pages for a person with a browser: the hub, a repository, a discussion."""

from __future__ import annotations

from html import escape

from .payloads import thread_diff
from .state import Repo, Thread
from .web import SITE, Call, Response, quoted, route

_STYLE = "body{font:16px sans-serif;max-width:60em;margin:2em auto;padding:0 1em}pre{overflow:auto}"


def home(call: Call) -> Response:
    """The repositories that anyone may see."""
    repos = [repo for repo in call.state.repos.values() if repo.readable_by(call.user)]
    return _page("Hub double", _list([_link(repo.page, repo.page) for repo in repos]))


def repo_page(call: Call) -> Response:
    """A repository's card, files and discussions."""
    repo = call.repo()
    readme = repo.main.tree.get("README.md")
    files = [_link(f"{repo.page}/resolve/main/{path}", path) for path in sorted(repo.main.tree)]
    card = readme.data.decode(errors="replace") if readme else "No model card."
    body = f"<pre>{escape(card)}</pre><h2>Files at {repo.main.sha}</h2>{_list(files)}"
    threads = [_thread_link(repo, thread) for thread in reversed(repo.threads)]
    return _page(repo.id, f"{body}<h2>Discussions</h2>{_list(threads)}")


def discussions_page(call: Call) -> Response:
    """A repository's discussions and pull requests."""
    repo = call.repo()
    threads = [_thread_link(repo, thread) for thread in reversed(repo.threads)]
    return _page(f"Discussions of {repo.id}", _list(threads))


def thread_page(call: Call) -> Response:
    """A discussion's comments and a pull request's diff."""
    repo = call.repo()
    thread = repo.thread(int(call.parts["num"]))
    comments = [item for item in thread.events if item["type"] == "comment"]
    body = f"<p>{thread.status}, by {escape(thread.author)}</p>"
    for item in comments:
        who, text = item["author"]["name"], item["data"]["latest"]["raw"]
        body += f"<h3>{escape(who)}</h3><pre>{escape(text)}</pre>"
    if thread.is_pull_request:
        body += f"<h2>Files changed</h2><pre>{escape(thread_diff(repo, thread))}</pre>"
    return _page(f"{thread.title} #{thread.number}", body)


def _thread_link(repo: Repo, thread: Thread) -> str:
    label = f"#{thread.number} {thread.title} ({thread.status})"
    return _link(f"{repo.page}/discussions/{thread.number}", label)


def _link(path: str, label: str) -> str:
    return f'<a href="/{escape(quoted(path))}">{escape(label)}</a>'


def _list(items: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def _page(title: str, body: str) -> Response:
    text = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1>{body}</html>"
    )
    return Response(200, text.encode(), {"Content-Type": "text/html; charset=utf-8"})


ROUTES = (
    route("GET", r"/", home),
    route("GET", SITE, repo_page),
    route("GET", SITE + r"/discussions", discussions_page),
    route("GET", SITE + r"/discussions/(?P<num>\d+)", thread_page),
)
