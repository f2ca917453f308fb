"""A Hugging Face Hub on loopback, for tests: a real HTTP server that the real client talks to.

    hub = HubDouble()
    hub.add_user(token="hf_owner", name="alice", orgs=["org"])
    hub.add_repo("org/model", files={"README.md": b"# Model\\n", "model.safetensors": weights})
    with hub.serve() as endpoint:
        HfApi(endpoint=endpoint, token="hf_owner").model_info("org/model")

Repositories live in memory as content-addressed commits with git's own hashes. Dates come from
a clock that ticks one second per event, so the same calls give the same commit shas in any run.

Read in this order: `objects` (blobs, trees, commits), `state` (repositories, users, threads),
`web` (requests and responses), the routes in `reading`, `writing`, `community` and `pages`,
`faults`, `server`, and `hub` (what tests use).

What the Hub does with a commit onto a closed or merged pull request is not documented; the double
answers 403. Like the Hub, it redirects large files to another host under a signed address.
"""

from .faults import LoggedRequest
from .hub import HubDouble
from .objects import Blob, Commit
from .state import DiscussionView, User

__all__ = ["Blob", "Commit", "DiscussionView", "HubDouble", "LoggedRequest", "User"]
