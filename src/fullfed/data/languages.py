"""Guesses an instruction's programming language: the category that code datasets are divided by."""

from __future__ import annotations

import re

OTHER = "other"

# What the request calls the language. One-word names that are also words ("C", "Go") count only
# where the wording makes them a language.
_NAMES = {
    "C#": r"\bC ?#|\bC[- ]sharp\b|\.NET\b",
    "C++": r"\bC ?\+\+|\bcpp\b",
    "C": r"(?-i:\bC\b)(?! ?[#+])(?= (?:program|code|function|language|struct|macro))"
    r"|\b(?:in|using|into) (?:the )?(?-i:C)\b(?! ?[#+])",
    "Go": r"\bGolang\b|(?-i:\bGo\b)(?= (?:program|code|function|language|struct))"
    r"|\b(?:in|using) (?-i:Go)\b",
    "Java": r"\bJava\b(?! ?Script)",
    "PHP": r"\bPHP\b",
    "Pascal": r"\b(?:Pascal|Delphi)\b(?! ?case|'s)",
    "Python": r"\bPython\d?\b|\bDjango\b|\bpandas\b|\bNumPy\b",
    "Scala": r"\bScala\b",
}
# What code of the language nearly always holds, for requests that do not name one.
_MARKS = {
    "C#": r"^using System\b|\bConsole\.Write(?:Line)?\(",
    "C++": r"#include ?<(?:iostream|vector|string|map|algorithm|bits/stdc\+\+\.h)>|\bstd::"
    r"|\bcout ?<<",
    "C": r"#include ?<\w+\.h>|\bprintf ?\(\"|\bmalloc\(",
    "Go": r"^package main\b|^func \w+\(|\bfmt\.Print",
    "Java": r"\bpublic static \w+|\bSystem\.out\.print|^import java\.",
    "PHP": r"<\?php|\$\w+ ?= ?|\becho \$",
    "Pascal": r"^program \w+;|\bwriteln\(.*\);|^begin$",
    "Python": r"^ *(?:def|class) \w+(?:\(.*\))?(?: ?-> ?\S+)?:|^(?:import \w+|from \w+ import )"
    r"|^ *(?:for|while|if) .*:$|\bprint\(|\blambda \w+:",
    "Scala": r"\bobject \w+ (?:extends App )?\{|\bdef \w+(?:\(.*\))?(?:: ?\w+(?:\[\w+\])?)? ?=",
}
# Another language that is named, or unmistakable, is no guess at one of ours.
_FOREIGN = re.compile(
    r"\b(?:JavaScript|Java Script|TypeScript|jQuery|Node(?:\.?js)?|React|Vue|Angular|HTML|CSS|SQL"
    r"|MySQL|Ruby|Rust|Swift|Kotlin|Perl|Bash|shell|Haskell|Lisp|MATLAB|Lua|XML|regex"
    r"|regular expression)\b",
    re.IGNORECASE,
)


_NAMED = {
    language: re.compile(name, re.IGNORECASE | re.MULTILINE) for language, name in _NAMES.items()
}
_MARKED = {language: re.compile(mark, re.MULTILINE) for language, mark in _MARKS.items()}


def programming_language(instruction: str, input_: str, output: str) -> str:
    """One of C, C#, C++, Go, Java, PHP, Pascal, Python, Scala, or "other".

    The instruction's own word for the language decides; failing that an input that is nothing
    but a language's name (as in RosettaAlpaca), then what the code in input and answer looks like.
    """
    named = [language for language, name in _NAMED.items() if name.search(instruction)]
    if named:
        return named[0]
    if input_.strip() in _NAMED:
        return input_.strip()
    if _FOREIGN.search(instruction):
        return OTHER
    code = f"{input_}\n{output}"
    return next((language for language, mark in _MARKED.items() if mark.search(code)), OTHER)
