"""The `hf-amdet` command. One file a command, no logic: parse, call, render, exit code."""

from __future__ import annotations

from hf_amdet.cli.app import main

__all__ = ["main"]
