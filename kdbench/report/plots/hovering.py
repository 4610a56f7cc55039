"""A plot as an element of a page: values on hover, colours of the page."""

import re
from xml.etree import ElementTree

from kdbench.errors import printable
from kdbench.report.plots.plot import Plot
from kdbench.report.plots.rendering import drawn
from kdbench.report.plots.style import HOVER

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"

INHERITED = {
    "#000000": "currentColor",
    "#ffffff": "var(--plot-paper, Canvas)",
}
"""What text, axes and paper are drawn in, and the page's colours in their place. The grid's grey is for both modes."""


DEFAULTS = "fill: currentColor; stroke-linejoin: round; stroke-linecap: butt"
"""What matplotlib leaves to be inherited: black, and what it says in a style sheet that would reach all of the page."""


def hover_svg(plot: Plot) -> str:
    """An `<svg>` element without XML header, whose data points have `<title>`s, and whose ids begin with its name.

    Text and axes take the colour of the page's text, and the paper is transparent; what lies on data to keep text
    readable is `--plot-paper`, or the page's canvas.
    """
    text, _, texts = drawn(plot)
    root = ElementTree.fromstring(_shortened(text))  # noqa: S314 — written by matplotlib just now, and no entities in it
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.removeprefix(SVG) in ("metadata", "style", "title"):
                parent.remove(child)
    _give_ids(root, plot.name)
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        for name in ("style", "fill", "stroke"):
            if name in element.attrib:
                element.set(name, _inherited(element.attrib[name]))
        number = re.fullmatch(rf".*-{HOVER}-(\d+)", element.get("id", ""))
        if number:
            title = ElementTree.Element("title")
            title.text = printable(texts[int(number[1])])
            element.insert(0, title)
    return _framed(root, plot)


def _shortened(text: str) -> str:
    """To a hundredth of a point, without indentation, and in fonts that are as wide as the one it was laid out in."""
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"\d+\.\d{3,}", _rounded, tag[0]), text)
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    text = text.replace("font-family: 'DejaVu Sans'", "font-family: 'DejaVu Sans', Verdana, sans-serif")
    return re.sub(r">\s+<", "><", text)


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def _give_ids(root: ElementTree.Element, lead: str) -> None:
    """Ids that something refers to, or that have a hover text, led by the plot's name; others are left out."""
    used = set(re.findall(r"url\(#([^)]+)\)", ElementTree.tostring(root, "unicode")))
    used |= {element.get(f"{XLINK}href", "").removeprefix("#") for element in root.iter()}
    for element in root.iter():
        name = element.attrib.pop("id", None)
        if name is not None and (name in used or name.startswith(f"{HOVER}-")):
            element.set("id", f"{lead}-{name}")
        target = element.attrib.pop(f"{XLINK}href", None)
        if target is not None:
            element.set("href", f"#{lead}-{target.removeprefix('#')}")
        for key, value in element.attrib.items():
            if "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{lead}-"))


def _inherited(style: str) -> str:
    for ours, theirs in INHERITED.items():
        style = style.replace(ours, theirs)
    return style


def _framed(root: ElementTree.Element, plot: Plot) -> str:
    """The root as a page's image: as wide as there is room, no wider than drawn, with a title and a description."""
    width = root.attrib.pop("width")
    root.attrib.pop("height", None)
    root.attrib.pop("version", None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{plot.name}-title {plot.name}-desc")
    root.set("class", "plot")
    root.set("style", f"width: 100%; max-width: {width}; height: auto; {DEFAULTS}")
    title = ElementTree.Element("title", {"id": f"{plot.name}-title"})
    desc = ElementTree.Element("desc", {"id": f"{plot.name}-desc"})
    title.text, desc.text = printable(plot.title), printable(plot.alt)
    root.insert(0, desc)
    root.insert(0, title)
    return ElementTree.tostring(root, "unicode", short_empty_elements=True)
