"""How well text stands out on a page, by the formula of WCAG 2."""

from __future__ import annotations

import re
from typing import Any

from selenium.webdriver import Chrome

LEAST = 4.5  # WCAG 2, level AA

_TEXTS = """
return [...document.querySelectorAll('body *')].filter(e =>
    !['SCRIPT', 'STYLE', 'NOSCRIPT'].includes(e.tagName) && e.checkVisibility()
    && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())
).map(e => {
    const grounds = [];
    for (let at = e; at; at = at.parentElement) grounds.push(getComputedStyle(at).backgroundColor);
    const style = getComputedStyle(e);
    const colour = e.closest('svg') ? style.fill : style.color;
    return [e.textContent.trim().slice(0, 40), colour, grounds];
});
"""


def poor_contrasts(browser: Chrome) -> list[Any]:
    """The texts that stand out by less than ``LEAST``, with how much they do."""
    texts = browser.execute_script(_TEXTS)
    assert len(texts) > 50, "the page's texts are found"
    found = [(text, contrast(colour, _ground(grounds))) for text, colour, grounds in texts]
    return [(text, ratio) for text, ratio in found if ratio < LEAST]


def contrast(one: str, other: str) -> float:
    """Of two colours as CSS computes them, such as "rgb(27, 31, 36)"; from 1 to 21."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _ground(grounds: list[str]) -> str:
    """The first of an element's and its ancestors' backgrounds that is not transparent."""
    return next(colour for colour in grounds if colour != "rgba(0, 0, 0, 0)")


def _luminance(colour: str) -> float:
    numbers = [int(n) / 255 for n in re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", colour).groups()]  # type: ignore[union-attr]
    linear = [n / 12.92 if n <= 0.04045 else ((n + 0.055) / 1.055) ** 2.4 for n in numbers]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
