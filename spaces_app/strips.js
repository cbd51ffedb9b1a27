// The behavior of the strips of directions (strips.py). `element`, `props`, `watch` and `trigger` come from Gradio.
const root = element.querySelector(".sf-strips");

function show() {
  const strips = (props.value || []).map((strip) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sf-strip";
    button.dataset.name = strip.name;
    button.setAttribute("aria-label", "Direction " + strip.label + ", from -2 to +2");
    const name = document.createElement("span");
    name.className = "sf-strip-name";
    name.textContent = strip.label;
    const row = document.createElement("span");
    row.className = "sf-strip-row";
    for (const [strength, uri] of strip.looks) {
      const image = document.createElement("img");
      image.src = uri;
      image.alt = "";
      image.title = strip.label + " " + (strength > 0 ? "+" : "") + strength;
      image.dataset.strength = strength;
      row.append(image);
    }
    button.append(name, row);
    return button;
  });
  root.replaceChildren(...strips);
  root.hidden = !strips.length;
  mark();
}

function mark() {
  for (const button of root.children) button.setAttribute("aria-pressed", String(button.dataset.name === props.picked));
}

root.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const asked = { direction: button.dataset.name };
  const strength = Number(event.target.dataset.strength); // of the picture that was clicked
  if (strength) asked.strength = strength;
  trigger("click", asked);
});

watch("value", show);
watch("picked", mark);
show();
