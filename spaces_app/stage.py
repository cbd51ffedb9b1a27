"""The stage: a component that shows a picture with its downloads, outlines the region under the pointer, and goes to
a region's dial on a click.

The leading stage, that of the tab Compose, also keeps the picture over a reload of the page: in its address, or in the
browser's storage for the tab if it has codes that are not seeds. It undoes and redoes by keyboard.

With a picture `before`, a slider wipes from it to the result. Pictures are data URIs: the browser gets the exact PNG
with its recipe, and the server writes no file for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

HERE = Path(__file__).parent

# stage.js inserts all strings as text, so that nothing in an untrusted recipe becomes markup.
TEMPLATE = """
<figure class="sf-stage">
  <div class="sf-frame">
    <img class="sf-picture" alt="">
    <img class="sf-before" alt="" hidden>
    <canvas class="sf-outline" aria-hidden="true"></canvas>
    <span class="sf-tip" hidden></span>
    <span class="sf-busy" role="status" hidden></span>
    <span class="sf-message" role="alert" hidden></span>
  </div>
  <input class="sf-wipe" type="range" min="0" max="100" value="50" hidden aria-label="Before and after">
  <figcaption class="sf-caption" aria-live="polite"></figcaption>
  <div class="sf-actions">
    <a class="sf-action sf-png" download="stylefusion.png" title="The exact picture, with its recipe inside">PNG</a>
    <button type="button" class="sf-action sf-file" data-kind="2x" title="Enlarged two times (Lanczos)">2x</button>
    <button type="button" class="sf-action sf-file" data-kind="4x" title="Enlarged four times (Lanczos)">4x</button>
    <button type="button" class="sf-action sf-file" data-kind="webp" title="The exact picture as WebP">WebP</button>
    <a class="sf-action sf-json" download="stylefusion.json" title="Makes this picture again">Recipe</a>
    <button type="button" class="sf-action sf-share">Copy link</button>
    <button type="button" class="sf-action sf-copy">Copy Python</button>
    <button type="button" class="sf-action sf-cutout" aria-pressed="false" hidden
      title="Save the picture without its background, which the segmenter finds">No background</button>
    <button type="button" class="sf-action sf-pixels" aria-pressed="false" hidden>Show pixels</button>
  </div>
  <input class="sf-link" type="text" readonly hidden aria-label="Link to this picture">
  <details class="sf-details"><summary>The same picture with Python</summary><pre class="sf-code"></pre></details>
</figure>
"""


def stage(value: Any = None, leads: bool = False, **settings: Any) -> gr.HTML:
    """Return a component that shows the dict of `results.result`.

    Args:
        value: the initial dict.
        leads: whether a click on a region goes to its dial; at most one stage per page.
        settings: arguments of `gr.HTML`.
    """
    script = (HERE / "stage.js").read_text(encoding="utf-8")
    return gr.HTML(
        value,
        html_template=TEMPLATE,
        js_on_load=script,
        apply_default_css=False,
        leads=leads,
        message="",
        busy=None,  # {"text", "at"}: what the server is busy with, until a value or a message comes
        outline=None,  # {"key", "labels"}: the map of regions of the picture with that key, which came without it
        file=None,  # {"name", "uri", "number"} of an enlarged or converted picture, which the browser saves
        **settings,
    )
