"""How the repos that people upload are laid out: pipelines, folders, adapters, single files.

Every weight file of a repo ends in one of four ways: it belongs to a text tower, to one that
cannot be read (with the reason), to something out of scope, or it is named as not looked into.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from hf_amdet.errors import MalformedFileError, NoTextTowerError, PickleOnlyError, TowerError
from hf_amdet.hub.adapters import declared_base, declared_revision, is_adapter, parts_of
from hf_amdet.hub.basemodel import base_models
from hf_amdet.hub.checkpoints import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, find_towers
from hf_amdet.hub.client import Hub
from hf_amdet.hub.components import LANGUAGE_MODELS, components_of
from hf_amdet.hub.download import read_head
from hf_amdet.hub.files import (
    AdapterFiles,
    Header,
    OutOfScope,
    RepoFile,
    ResolvedRepo,
    TowerFiles,
    UnreadableTower,
)
from hf_amdet.hub.folder import (
    INDEXED,
    KNOWN,
    Folder,
    check_files,
    examine,
    is_shard,
    pickle_only,
    read_json,
    tokenizer_files,
    weight_files,
)
from hf_amdet.hub.header import shown
from hf_amdet.hub.source import ADAPTER, CONFIG
from hf_amdet.hub.unread import (
    is_safetensors,
    names,
    not_looked_into,
    passed_over,
    unopened,
    unread,
    unsafe_in,
)

Part = TowerFiles | UnreadableTower | OutOfScope | AdapterFiles
Listing = Mapping[str, RepoFile]
"""The files of a target by path."""

PIPELINE = "model_index.json"
MODULAR = "modular_model_index.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

MAX_FOLDERS = 32
MAX_LOOSE_FILES = 64
"""So many folders of a kind and single files are looked into; the rest is named."""


def survey(repo: ResolvedRepo, listing: Listing, hub: Hub) -> Iterator[Part]:
    """Everything in a target that is a text tower, should be one, or is said not to be.

    Raises:
        HubError: the Hub refused or did not answer.
    """
    yield from _Survey(repo, listing, hub).parts()


class _Survey:
    def __init__(self, repo: ResolvedRepo, listing: Listing, hub: Hub) -> None:
        self._repo, self._listing, self._hub = repo, listing, hub
        self._folders: dict[str, dict[str, RepoFile]] = defaultdict(dict)
        for path, file in listing.items():
            folder, _, name = path.rpartition("/")
            self._folders[folder][name] = file
        self._components: set[str] = set()
        """Folders that a pipeline names."""
        self._heads = 0
        """Files of other models whose headers were read."""
        self._seen: set[str] = set()
        """Weight files that were accounted for."""

    def parts(self) -> Iterator[Part]:
        found: list[Part] = []
        for path in self._limited(self._with(PIPELINE), MAX_FOLDERS, "pipelines", found):
            found += self._pipeline(path)
        for path in self._with(MODULAR):
            found.append(
                UnreadableTower(
                    self._folders[path][MODULAR].path,
                    None,
                    NoTextTowerError.code,
                    f"{MODULAR} may name parts in other repos, which are not read here. Scan them.",
                )
            )
        found += self._models()
        adapters = self._with(ADAPTER)
        for path in self._limited(adapters, MAX_FOLDERS, "folders with adapters", found):
            found += self._peft(path)
        found += self._loose()
        yield from found
        yield from self._unsafe(found)

    def _with(self, name: str) -> list[str]:
        return sorted(path for path, folder in self._folders.items() if name in folder)

    def _limited(self, paths: list[str], limit: int, what: str, found: list[Part]) -> list[str]:
        """The first of `paths`; the others are named, and nothing in them is looked at again."""
        if rest := paths[limit:]:
            found.append(not_looked_into(rest, what))
            for path in rest:
                self._seen |= {file.path for file in self._folders[path].values()}
        return paths[:limit]

    def _pipeline(self, root: str) -> Iterator[Part]:
        """The components of a diffusers pipeline, by its model_index.json."""
        file = self._folders[root][PIPELINE]
        try:
            components = components_of(read_json(self._repo, file, self._hub), file.path)
        except TowerError as error:
            yield UnreadableTower(file.path, None, error.code, str(error))
            return
        others = []
        for name, library, class_name in components:
            path = f"{root}/{name}" if root else name
            weights = self._weights_in(path)
            if library == "transformers" and class_name in KNOWN:
                yield from self._component(root, path, class_name)
            elif (
                "text_encoder" in name
                and library != "transformers"
                and (library, class_name) not in LANGUAGE_MODELS
            ):
                yield UnreadableTower(
                    path,
                    None,
                    NoTextTowerError.code,
                    f"{shown(name)} is a {shown(class_name)} of {shown(library)}, which is not read"
                    " here. Scan the text encoder that it is made of.",
                )
                self._seen |= weights
            elif weights:
                others.append(f"{shown(name)} ({shown(class_name)})")
                yield from self._in_disguise(weights)
            self._components.add(path)
        if others:
            yield OutOfScope(root, f"No text tower of CLIP or SigLIP: {', '.join(others)}.")

    def _component(self, root: str, path: str, class_name: str) -> Iterator[Part]:
        name = path.rpartition("/")[2]
        if CONFIG not in self._folders.get(path, {}):
            yield UnreadableTower(
                path,
                class_name,
                NoTextTowerError.code,
                f"{PIPELINE} names the text encoder {shown(name)}, but there is no {CONFIG} in its "
                "folder.",
            )
            self._seen |= self._weights_in(path)
            return
        tokenizer = name.replace("text_encoder", "tokenizer")
        beside = self._folders.get(f"{root}/{tokenizer}" if root else tokenizer, {})
        # It decides what the folder is loaded as, so it is one of the tower's files.
        index = self._folders[root][PIPELINE]
        for part in self._examined(path, tokenizer=beside, component=class_name):
            if isinstance(part, TowerFiles):
                part = replace(part, support=(*part.support, index))
            yield part

    def _models(self) -> Iterator[Part]:
        """Folders with a config.json that no pipeline names."""
        folders = [
            path
            for path in self._with(CONFIG)
            if path not in self._components
            and (not path or self._weights_in(path) or unsafe_in(self._folders[path]))
        ]
        skipped: list[Part] = []
        for path in self._limited(folders, MAX_FOLDERS, "folders with models", skipped):
            for part in self._examined(path, tokenizer=self._tokenizer_of(path)):
                # A config alone is no model where other files hold the weights.
                if not (_lacks_weights(part, NoTextTowerError) and self._others_in(path)):
                    yield part
        yield from skipped

    def _examined(
        self, path: str, *, tokenizer: Folder | None, component: str | None = None
    ) -> Iterator[Part]:
        """What a folder with a config.json holds, and which shards loaders pass over."""
        parts = list(
            examine(
                self._repo,
                path,
                self._folders[path],
                self._hub,
                tokenizer=tokenizer,
                component=component,
            )
        )
        yield from parts
        weights = self._weights_in(path)
        towers = [part for part in parts if isinstance(part, TowerFiles)]
        refused = [part for part in parts if not isinstance(part, TowerFiles)]
        if any(isinstance(part, OutOfScope) for part in parts):
            yield from self._in_disguise(weights)
            return
        for part in refused:
            missing = _lacks_weights(part, NoTextTowerError, PickleOnlyError)
            if part.path == path and not (missing and self._others_in(path)):
                self._seen |= weights
                return
        read = {file.path for tower in towers for file in tower.weights}
        read |= {part.path for part in refused}
        shards = []
        if any(INDEXED.fullmatch(name) for name in self._folders[path]):
            shards = sorted(file for file in weights - read if is_shard(PurePosixPath(file).name))
        self._seen |= read | set(shards)
        if shards:
            yield OutOfScope(path, passed_over(shards))

    def _in_disguise(self, weights: set[str]) -> Iterator[Part]:
        """Text towers in files that are said to hold something else.

        What a config or an index calls a folder is its owner's word, and loaders that are told
        another class read the weights all the same. With which settings, nobody can tell.
        """
        self._seen |= weights
        files = [self._listing[path] for path in sorted(weights)]
        room = max(0, MAX_LOOSE_FILES - self._heads)
        if files[room:]:
            yield not_looked_into([file.path for file in files[room:]], "weight files")
        for file in files[:room]:
            self._heads += 1
            try:
                header, _ = self._head(file)
            except TowerError:
                continue  # No loader reads it either.
            for part in self._towers_in(file, header):
                yield UnreadableTower(
                    part.path,
                    None,
                    MalformedFileError.code,
                    f"{shown(file.path)} holds a text tower, but its folder is said to hold "
                    "another model: how it is used is not known. Mend the config or the index.",
                )

    def _weights_in(self, path: str) -> set[str]:
        folder = self._folders.get(path, {})
        return {folder[name].path for name in weight_files(folder)}

    def _others_in(self, path: str) -> bool:
        """Whether a folder holds weights under names of their own."""
        return any(
            name.endswith(".safetensors") and not is_shard(name) for name in self._folders[path]
        )

    def _tokenizer_of(self, path: str) -> Folder | None:
        """The folder beside a text encoder that diffusers keeps its tokenizer in."""
        parent, _, name = path.rpartition("/")
        if tokenizer_files(self._folders[path]) or not name.startswith("text_encoder"):
            return None
        beside = f"tokenizer{name.removeprefix('text_encoder')}"
        return self._folders.get(f"{parent}/{beside}" if parent else beside)

    def _peft(self, path: str) -> Iterator[Part]:
        """A folder with an adapter_config.json."""
        folder = self._folders[path]
        if ADAPTER_WEIGHTS not in folder:
            unsafe = unsafe_in(folder)
            error = (
                pickle_only(unsafe[0])
                if unsafe
                else NoTextTowerError(f"There is an {ADAPTER}, but no {ADAPTER_WEIGHTS}.")
            )
            yield UnreadableTower(folder[ADAPTER].path, None, error.code, str(error))
            return
        file = folder[ADAPTER_WEIGHTS]
        self._seen.add(file.path)
        try:
            settings = read_json(self._repo, folder[ADAPTER], self._hub)
            yield self._adapter(file, *self._head(file), settings)
        except TowerError as error:
            yield UnreadableTower(file.path, None, error.code, str(error))

    def _adapter(
        self,
        file: RepoFile,
        header: Header,
        metadata: Mapping[str, str],
        settings: Mapping[str, Any] | None = None,
    ) -> Part:
        parts = parts_of(header, settings, file.path, metadata)
        if not parts:
            return OutOfScope(file.path, f"The adapter {shown(file.path)} changes no text tower.")
        card = {"base_model": self._bases}
        base, revision = declared_base(settings, card), declared_revision(settings)
        if base is None:
            return UnreadableTower(
                file.path,
                None,
                "no_base",
                f"The adapter {shown(file.path)} changes a text tower, but neither its settings "
                "nor the card name the model that it belongs to. Name it as base_model in the "
                "card, or scan the merged model.",
            )
        return AdapterFiles(file.path, file, base, revision, parts)

    @cached_property
    def _bases(self) -> list[str]:
        return list(base_models(self._repo, self._hub))

    def _loose(self) -> Iterator[Part]:
        """Weight files that stand for themselves."""
        files = [
            file
            for path, file in sorted(self._listing.items())
            if is_safetensors(path) and path not in self._seen
        ]
        without = []
        for number, file in enumerate(files):
            if number >= MAX_LOOSE_FILES:
                yield not_looked_into([file.path for file in files[number:]], "weight files")
                break
            found = list(self._single_file(file))
            yield from found
            if not found:
                without.append(file.path)
        if without:
            yield OutOfScope("", f"No text tower in {names(without)}.")

    def _single_file(self, file: RepoFile) -> Iterator[Part]:
        try:
            header, metadata = self._head(file)
            if is_adapter(header):
                yield self._adapter(file, header, metadata)
                return
        except TowerError as error:
            yield UnreadableTower(file.path, None, error.code, str(error))
            return
        yield from self._towers_in(file, header)

    def _towers_in(self, file: RepoFile, header: Header) -> Iterator[Part]:
        """The text towers that a file's tensors show."""
        folder, _, name = file.path.rpartition("/")
        siblings = self._folders[folder]
        try:
            open_clip, support = None, []
            if name in OPEN_CLIP_WEIGHTS and OPEN_CLIP_CONFIG in siblings:
                support.append(siblings[OPEN_CLIP_CONFIG])
                open_clip = read_json(self._repo, siblings[OPEN_CLIP_CONFIG], self._hub)
            towers = list(find_towers(header, file.path, open_clip))
            if len({tower.prefix for tower in towers}) < len(towers):
                raise MalformedFileError(
                    f"{shown(file.path)} holds one text tower under two kinds of names."
                )
        except TowerError as error:
            yield UnreadableTower(file.path, None, error.code, str(error))
            return
        for tower in towers:
            place = file.path if len(towers) == 1 else f"{file.path}#{tower.prefix}"
            yield TowerFiles(
                place,
                tower.architecture,
                tower.config,
                (file,),
                tuple(support),
                prefix=tower.prefix,
                dialect=tower.dialect,
            )

    def _head(self, file: RepoFile) -> tuple[Header, Mapping[str, str]]:
        check_files(self._repo, [file], [])
        return read_head(self._repo, file, self._hub)

    def _unsafe(self, found: list[Part]) -> Iterator[Part]:
        """Weights in formats that are never opened; said, because loaders may prefer them."""
        unsafe = unsafe_in(self._listing)
        if unsafe and not found:
            yield UnreadableTower("", None, PickleOnlyError.code, str(pickle_only(unsafe[0])))
        elif any(isinstance(part, TowerFiles | AdapterFiles) for part in found):
            yield from unread(self._listing)
        elif unsafe and not any(_lacks_weights(part, PickleOnlyError) for part in found):
            yield OutOfScope("", unopened(unsafe))


def _lacks_weights(part: Part, *errors: type[TowerError]) -> bool:
    return isinstance(part, UnreadableTower) and part.code in [error.code for error in errors]
