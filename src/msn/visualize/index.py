"""A page that shows pictures of one encoder, for a browser without a network."""

from collections.abc import Sequence
from typing import NamedTuple

from jinja2 import Environment

PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  :root { color-scheme: light dark }
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto;
         padding: 0 1rem }
  h1 { font-size: 1.3rem; overflow-wrap: anywhere }
  h2 { font-size: 1.1rem }
  figure { margin: 0 0 2.5rem }
  .picture { overflow-x: auto }
  img { display: block; max-width: none }
</style>
<h1>{{ title }}</h1>
{% for entry in entries %}
<figure>
  <h2>{{ entry.name }}</h2>
  <figcaption>{{ entry.purpose }} <a href="{{ entry.name }}.json">numbers</a></figcaption>
  <div class="picture"><img src="{{ entry.name }}.png" alt="{{ entry.purpose }}"></div>
</figure>
{% endfor %}
{% for text in notes %}
<p>{{ text }}</p>
{% endfor %}
</html>
"""


class Entry(NamedTuple):
    """A picture NAME.png with its numbers NAME.json, and a sentence on what it shows."""

    name: str
    purpose: str


def index_page(title: str, entries: Sequence[Entry], notes: Sequence[str] = ()) -> str:
    """Write the HTML of a page beside the pictures, all texts escaped.

    Args:
        title: of the page.
        entries: pictures in the same folder.
        notes: lines below them.
    """
    page = Environment(autoescape=True).from_string(PAGE)
    return page.render(title=title, entries=entries, notes=notes) + "\n"
