"""A component that shows an edited photograph of any shape, with a slider that wipes from the original to it."""

from __future__ import annotations

from typing import Any

import gradio as gr

# The script inserts all strings as text or as addresses of pictures, so that nothing becomes markup.
TEMPLATE = """
<figure class="sf-photo">
  <div class="sf-photo-frame">
    <img class="sf-photo-after" alt="">
    <img class="sf-photo-before" alt="">
  </div>
  <input class="sf-wipe" type="range" min="0" max="100" value="50" aria-label="Before and after">
  <figcaption class="sf-caption" aria-live="polite"></figcaption>
</figure>
"""
SCRIPT = """
const find = (name) => element.querySelector(name);
function wipe() {
  find(".sf-photo-before").style.clipPath = `inset(0 ${100 - find(".sf-wipe").value}% 0 0)`;
}
function show() {
  const value = props.value;
  if (!value) return;
  find(".sf-photo-after").src = value.after;
  find(".sf-photo-after").alt = value.caption;
  find(".sf-photo-before").src = value.before;
  find(".sf-caption").textContent = value.caption;
  wipe();
}
find(".sf-wipe").addEventListener("input", wipe);
watch("value", show);
show();
"""


def photo_view(**settings: Any) -> gr.HTML:
    """Return a component whose value is {"before", "after", "caption"}: two pictures of one shape, as data URIs."""
    return gr.HTML(html_template=TEMPLATE, js_on_load=SCRIPT, apply_default_css=False, **settings)
