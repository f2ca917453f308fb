"""Pictures that stand in an HTML page: SVG documents of matplotlib's, made fit for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.etree import ElementTree

_NAMESPACE = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_REFERENCE = re.compile(r"(?:url\()?#([\w-]+)\)?")
_IDENTITY = re.compile(r' id="| href="#|"url\(#')
_FOR_THE_WHOLE_PAGE = ("metadata", "style")


@dataclass(frozen=True)
class Picture:
    """A picture in a page.

    Attributes:
        caption: how to read it, for people.
        alt: what is seen in it, for those who do not see it.
        svg: its element, as `inline` gives it. It goes into the page as it is, so it must hold no
            text of strangers; matplotlib draws texts as outlines.
    """

    caption: str
    alt: str
    svg: str


def inline(document: str) -> str:
    """The `<svg>` element of `document`, which must be our own.

    It has no style sheet, whose rules would hold for the whole page, and no style attributes,
    which a strict Content-Security-Policy refuses; no comments; no ids but those that it refers to.
    It is as wide as what it stands in.
    """
    root = ElementTree.fromstring(document)  # noqa: S314
    for element in root.iter():
        _simplify(element)
    values = (value for element in root.iter() for value in element.attrib.values())
    used = {match[1] for value in values if (match := _REFERENCE.fullmatch(value))}
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
        for child in list(element):
            if child.tag in _FOR_THE_WHOLE_PAGE:
                element.remove(child)
    # What matplotlib says in its style sheet.
    lines = {"stroke-linejoin": "round", "stroke-linecap": "butt"}
    root.attrib = {"viewBox": root.attrib["viewBox"], **lines}
    return ElementTree.tostring(root, encoding="unicode")


def with_prefix(svg: str, prefix: str) -> str:
    """What `inline` gave, with `prefix` before its ids, so that no two pictures share one."""
    return _IDENTITY.sub(rf"\g<0>{prefix}", svg)


def _simplify(element: ElementTree.Element) -> None:
    """Names without namespaces, rules of style as attributes, no blanks for the eye."""
    element.tag = element.tag.removeprefix(_NAMESPACE)
    attributes = element.attrib
    if _LINK in attributes:
        attributes["href"] = attributes.pop(_LINK)
    for rule in filter(None, attributes.pop("style", "").split(";")):
        name, value = rule.split(":", 1)
        attributes[name.strip()] = value.strip()
    element.text = element.tail = None
