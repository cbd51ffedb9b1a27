"""Tabs whose first content is made when they are seen, and anew after a change of models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from stylefusion_hf.spaces_app.errors import show_errors

# The first value becomes the name of the tab that is shown: gradio does not tell the server.
SHOWN_TAB_JS = """(...values) => {
  const tab = [...document.querySelectorAll("[role=tab][aria-selected=true]")].find((each) => each.offsetParent);
  return [tab ? tab.textContent.trim() : "", ...values.slice(1)];
}"""


def open_when_seen(
    tab: gr.Tab,
    chosen: gr.Dropdown,
    make: Callable[..., Sequence[Any]],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    switch: Callable[[int], Sequence[Any]],
    switched: Sequence[Any],
    **settings: Any,
) -> list[Any]:
    """Connect a tab to `make` its content when it is first seen.

    Args:
        tab: the tab.
        chosen: the index of the model in use.
        make: called with the values of `inputs`; returns those of `outputs`.
        inputs, outputs: components.
        switch: called with the index of another model; returns the values of `switched`, without anything that takes
            long: the content is made when the tab is seen, or at once if it is shown.
        switched: components.
        **settings: of the events that make the content.

    Returns:
        The two events that make it, for others to follow: the tab is opened, or the model has changed.
    """
    opened, shown = gr.State(False), gr.Textbox(visible=False)  # whether there is content of this model

    def first(where: str, opened: bool, *values: Any) -> Any:
        return gr.skip() if opened or where != tab.label else (True, *make(*values))

    def reset(index: int) -> list[Any]:
        return [False, *switch(index)]

    asked: dict[str, Any] = {"inputs": [shown, opened, *inputs], "outputs": [opened, *outputs], "js": SHOWN_TAB_JS}
    changed = chosen.change(show_errors(reset), chosen, [opened, *switched], api_visibility="private")
    return [event(show_errors(first), **(settings | asked)) for event in (tab.select, changed.then)]
