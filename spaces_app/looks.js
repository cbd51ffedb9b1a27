// The behavior of the row of candidates (looks.py). `element`, `props`, `watch` and `trigger` come from Gradio.
const find = (name) => element.querySelector(".sf-" + name);

function make(tag, className, text) {
  const made = document.createElement(tag);
  if (tag === "button") made.type = "button";
  made.className = className;
  if (text) made.textContent = text;
  return made;
}

function show() {
  const value = props.value;
  if (!value) return;
  const focused = element.contains(document.activeElement) ? document.activeElement.dataset : null;
  find("looks").dataset.busy = "";
  find("looks-title").textContent = value.title + (value.locked ? " (Locked: nothing changes until you unlock it.)" : "");
  find("places").replaceChildren(...value.places.map(([place, name]) => {
    const button = make("button", "sf-place", name);
    button.dataset.place = place;
    button.setAttribute("aria-pressed", String(place === value.place));
    return button;
  }));
  find("places").hidden = value.places.length < 2;
  const name = value.places.find(([place]) => place === value.place)[1];
  const candidates = value.looks.map(([seed, uri]) => {
    const button = make("button", "sf-candidate");
    const image = make("img", "");
    image.src = uri;
    image.alt = "";
    button.append(image, make("span", "sf-small", String(seed)));
    button.dataset.seed = seed;
    button.disabled = value.locked;
    button.setAttribute("aria-label", `${name}: seed ${seed}`);
    return button;
  });
  const more = make("button", "sf-more", "More");
  more.setAttribute("aria-label", `More of ${name}`);
  find("candidates").replaceChildren(...candidates, more);
  mark(props.picked);
  if (focused) { // so that the keyboard stays where it was
    const same = focused.place !== undefined ? `[data-place="${focused.place}"]` : ".sf-more";
    element.querySelector(same)?.focus();
  }
}

function mark(seed) {
  for (const button of element.querySelectorAll(".sf-candidate"))
    button.setAttribute("aria-pressed", String(Number(button.dataset.seed) === seed));
}

const PATIENCE = 8000; // milliseconds: an error shows on the stage, and brings no new row
function ask(detail) {
  find("looks").dataset.busy = detail.seed === undefined ? "yes" : "";
  setTimeout(() => { find("looks").dataset.busy = ""; }, PATIENCE);
  trigger("click", detail);
}

element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button || !props.value) return;
  if (button.dataset.place !== undefined) ask({ place: Number(button.dataset.place) });
  else if (button.classList.contains("sf-more")) ask({ more: true });
  else {
    const seed = Number(button.dataset.seed);
    mark(seed);
    ask({ place: props.value.place, seed });
  }
});

// A click on the picture's region (stage.js), or on a dial's thumbnail, shows the row of that dial.
function go(place) {
  if (props.value?.places.some(([number]) => number === place) && place !== props.value.place) ask({ place });
}
document.addEventListener("sf-region", (event) => go(event.detail + 2));
document.addEventListener("click", (event) => {
  const card = event.target instanceof Element && event.target.closest(".sf-thumbnail")?.closest("[id^='sf-dial-']");
  if (!card) return;
  const name = card.id.slice("sf-dial-".length);
  go(name === "base" ? 0 : name === "global" ? 1 : Number(name) + 2);
});

watch("value", show);
watch("picked", () => mark(props.picked));
show();
