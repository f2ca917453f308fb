"""The published schema is the model's, and a report that breaks it never reaches the disk."""

from __future__ import annotations

import json
from importlib import resources

from hf_amdet.report.files import SCHEMA_FILE, json_schema


def test_published_schema_is_that_of_the_model() -> None:
    published = (resources.files("hf_amdet.report") / SCHEMA_FILE).read_text(encoding="utf-8")
    assert json.loads(published) == json_schema(), "run scripts/update-schema"


def test_schema_names_itself() -> None:
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == "urn:hf-amdet:report:v1"
