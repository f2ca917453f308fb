"""Reports as files: canonical JSON, the published schema, and writes that are whole or absent."""

from __future__ import annotations

import json
import os
import secrets
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from jsonschema import (  # type: ignore[import-untyped,unused-ignore]
    Draft202012Validator,
    ValidationError,
)
from pydantic import ValidationError as ModelError

from hf_amdet.errors import OutputError, ReportError
from hf_amdet.report.schema import SCHEMA_VERSION, Report

SCHEMA_FILE = f"report.v{SCHEMA_VERSION}.schema.json"
SCHEMA_ID = f"urn:hf-amdet:report:v{SCHEMA_VERSION}"

MAX_BYTES = 64 * 1024 * 1024
"""Largest report that is read; one tower of many restarts takes well under a megabyte."""

_FAULTS_SHOWN = 5
_FAULT_LENGTH = 200


def json_schema() -> dict[str, Any]:
    """The JSON Schema of today's model; a test holds the published file to it."""
    head = {"$schema": Draft202012Validator.META_SCHEMA["$id"], "$id": SCHEMA_ID}
    return {**head, **Report.model_json_schema()}


def to_json(report: Report) -> str:
    """`report` as ASCII JSON: equal reports give equal text, whatever order they were built in."""
    document = report.model_dump(mode="json")
    return json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"


def validate(document: object) -> None:
    """Hold parsed JSON against the published schema.

    Raises:
        ReportError: naming the JSON path of the first faults.
    """
    instance: Any = document
    faults = sorted(_validator().iter_errors(instance), key=_position)
    if faults:
        shown = "; ".join(_fault(fault) for fault in faults[:_FAULTS_SHOWN])
        more = f"; and {len(faults) - _FAULTS_SHOWN} more" if len(faults) > _FAULTS_SHOWN else ""
        raise ReportError(f"not a report of schema version {SCHEMA_VERSION}: {shown}{more}")


def parse(data: bytes, source: str) -> Report:
    """The report in `data`; `source` names it in messages.

    Raises:
        ReportError: not JSON, another schema version, or not valid.
    """
    document = _decode(data, source)
    version = document.get("schema_version") if isinstance(document, dict) else None
    if isinstance(version, int) and version != SCHEMA_VERSION:
        raise ReportError(
            f"{source} has schema version {version}, this release of hf-amdet reads version "
            f"{SCHEMA_VERSION}: read it with the release that its environment.hf_amdet names"
        )
    try:
        validate(document)
        return Report.model_validate_json(data)
    except (ReportError, ModelError) as error:
        raise ReportError(f"{source}: {error}") from error


def load(path: Path) -> Report:
    """Read a report file.

    Raises:
        ReportError: no such file, unreadable, too large, not JSON, another schema version, or not
            valid.
    """
    try:
        with path.open("rb") as file:
            # Bounded by what is read: the size that a file system declares may be anything.
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ReportError(f"cannot read the report {path}: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise ReportError(f"{path} is larger than {MAX_BYTES} bytes: that is no hf-amdet report")
    return parse(data, str(path))


def write_report(report: Report, path: Path) -> None:
    """Write `report` as JSON, after holding it against the published schema.

    Raises:
        ReportError: the report does not validate; nothing is written.
        OutputError: see `write_atomically`.
    """
    text = to_json(report)
    validate(json.loads(text))
    write_atomically(path, text.encode())


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path`, so that a reader finds the old file or the whole new one.

    Raises:
        OutputError: disk full, no permission, or no such folder; what was there is untouched.
    """
    # In the same folder, since a rename is atomic within one file system only. Opened by hand
    # rather than by tempfile, whose files are private to the user whatever the umask says.
    temporary = path.with_name(f".amdet-{secrets.token_hex(8)}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:  # an interrupt, too, leaves nothing half-written behind
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error


@cache
def _validator() -> Draft202012Validator:
    text = (resources.files("hf_amdet.report") / SCHEMA_FILE).read_text(encoding="utf-8")
    return Draft202012Validator(json.loads(text))


def _decode(data: bytes, source: str) -> object:
    try:
        document: object = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # bad UTF-8 and bad JSON are both ValueErrors
        raise ReportError(f"{source} is not JSON: {error}") from error
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _position(fault: ValidationError) -> list[str]:
    return [str(step) for step in fault.absolute_path]


def _fault(fault: ValidationError) -> str:
    message = fault.message
    if len(message) > _FAULT_LENGTH:
        message = message[:_FAULT_LENGTH] + "…"
    return f"{fault.json_path}: {message}"
