"""What pages are made of: the document around it all, cards, tables and lists of facts. Nothing is loaded from anywhere, and nothing runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from html import escape

from niwaki.report.style import STYLE

# A page made from a record that somebody else wrote cannot run or load anything, whatever stands in it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
LOGO = (
    '<svg viewBox="0 0 24 24" aria-hidden="true" fill="currentColor"><ellipse cx="9" cy="5.2" rx="5.6" ry="2.9"/>'
    '<ellipse cx="17" cy="10.4" rx="5" ry="2.5"/><ellipse cx="6.4" cy="14.2" rx="4.8" ry="2.4"/>'
    '<path d="M10.4 22.5c1.6-3.6-1.9-5.7 1.2-9 1.5-1.6-.8-4-1.6-6.5l1.4-.3c.8 2.2 3.2 4.4 1.6 7.2-1.8 3 1.2 4.8.2 8.6z"/></svg>'
)

Section = tuple[str, str, str]  # anchor, title, body


def document(title: str, head: str, sections: Sequence[Section], foot: str) -> str:
    """The text of one HTML file. head, foot: HTML, with a `header` and a `footer`; between them the sections, and links to them above."""
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in sections)
    body = "".join(
        f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(title)}</h2>{text}</section>' for name, title, text in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="generator" content="niwaki">'
        f"<title>{escape(title)} · niwaki</title><style>{STYLE}</style></head><body>{head}"
        f"{f'<nav aria-label=Sections>{links}</nav>' if links else ''}<main>{body}</main>{foot}</body></html>\n"
    )


def card(title: str, body: str, kind: str = "") -> str:
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    return f'<div class="{f"card {kind}".strip()}">{heading}{body}</div>'


def folded(title: str, body: str) -> str:
    return f'<details><summary>{escape(title)}</summary><div class="scroll">{body}</div></details>'


def listing(head: Sequence[str], rows: Sequence[Sequence[str]], *, strong: AbstractSet[int] = frozenset()) -> str:
    """Rows of HTML cells below `head`, whose numeric columns start with ">". strong: the rows that stand out."""
    kinds = [" class=n" if name.startswith(">") else "" for name in head]
    top = "".join(f"<th scope=col{kind}>{escape(name.removeprefix('>'))}</th>" for name, kind in zip(head, kinds, strict=True))
    body = "".join(
        f"<tr{' class=strong' * (at in strong)}>{''.join(f'<td{kind}>{cell}</td>' for cell, kind in zip(row, kinds, strict=True))}</tr>"
        for at, row in enumerate(rows)
    )
    return f'<div class="scroll"><table class="list"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def fact_list(facts: Mapping[str, str]) -> str:
    """A list of names and values; those without a value are left out."""
    pairs = (f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items() if value)
    return f'<dl class="facts">{"".join(pairs)}</dl>'
