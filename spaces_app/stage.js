// The behavior of a stage (stage.py). `element`, `props` and `watch` come from Gradio.
const find = (name) => element.querySelector(".sf-" + name);
const REST = 400; // milliseconds after the last draft until the full picture is asked for
const TURNING = 4000; // milliseconds that both wait for the answer to a dial that is being turned
const NONE = 255; // label of pixels in no region that has a dial
let labels = null; // one byte per pixel: the index of its region
let across = 0, down = 0; // its columns and rows
let pointed = NONE;
let chosen = NONE;
let resting = null; // the timer of a draft
const SETTLE = 250; // milliseconds after the last full picture until the row of candidates is brought up to date
let settling = null; // the timer of a full picture
const cards = () => (props.leads ? [...document.querySelectorAll("[id^='sf-dial-']")] : []);

// Models have different numbers of dials: the page has as many as the one with the most.
const surplus = document.createElement("style");
if (props.leads) document.head.append(surplus);
function hideSurplus(dials) {
  const rule = `[id^='sf-dial-']:not(${dials.map((name) => "#sf-dial-" + name).join(", ")}) { display: none !important; }`;
  if (surplus.textContent !== rule) surplus.textContent = rule;
}

function show() {
  const value = props.value;
  if (!value) return;
  if (props.leads) hideSurplus(value.dials);
  find("picture").src = value.png;
  find("picture").alt = value.caption;
  find("before").hidden = find("wipe").hidden = !value.before;
  if (value.before) find("before").src = value.before;
  wipe();
  find("caption").textContent = value.caption;
  if (value.draft) rest(again ? TURNING : REST); // a full picture that arrives late does not cancel a newer draft's timer
  [asked, again] = [again, false];
  settle();
  find("cutout").hidden = !props.leads || !value.cutout;
  find("pixels").hidden = !props.leads || value.smooth;
  for (const button of element.querySelectorAll(".sf-file")) button.hidden = !props.leads;
  if (value.draft) find("png").removeAttribute("href"); else find("png").href = value.png;
  find("json").href = "data:application/json;charset=utf-8," + encodeURIComponent(value.recipe);
  find("code").textContent = value.code;
  find("share").disabled = !value.query;
  find("share").title = value.query ? "A link that makes this picture" : "A link holds seeds only: download the recipe";
  find("link").hidden = true;
  find("frame").title = value.outlined ? "" : "This model has no segmenter, so that its regions have no outlines here";
  find("frame").style.aspectRatio = value.aspect || 1;
  find("frame").style.cursor = value.outlined ? "" : "default";
  read(value.labels);
}

// A draft is replaced by the full picture when the dials rest, and only where somebody looks.
let seen = false;
function rest(wait = REST) {
  clearTimeout(resting);
  if (seen && props.value?.draft) resting = setTimeout(() => trigger("submit"), wait);
}
function settle(wait = SETTLE) {
  clearTimeout(settling);
  if (props.leads && props.value && !props.value.draft) settling = setTimeout(() => trigger("select"), wait);
}
// A dial that is turned again before the server has answered does not rest, however slow the server is: Gradio sends the
// last turn of those in the meantime when the answer has come.
let asked = false, again = false; // whether an answer is due, and whether another turn will be sent after it
function turn(event, controls) {
  if (!(event.target instanceof Element) || !event.target.closest(controls)) return;
  [asked, again] = [true, asked];
  rest(TURNING);
  settle(TURNING);
}
// Buttons that are clicked one after the other do not rest between the clicks either.
const BUTTONS = "#sf-surprise, #sf-undo, #sf-redo, #sf-clear, [id^='sf-dial-'] button, .sf-candidate, .sf-left .sf-examples button";
if (props.leads) {
  document.addEventListener("input", (event) => turn(event, "#sf-psi, [id^='sf-dial-']"));
  document.addEventListener("click", (event) => turn(event, BUTTONS));
}
new IntersectionObserver((entries) => { seen = entries.at(-1).isIntersecting; rest(); }).observe(element);

// What Gradio leaves to be desired for screen readers: a group has its id twice, and pictures in buttons have no name.
function nameButtons(part) {
  for (const frame of part.querySelectorAll("button > .image-frame"))
    frame.parentElement.setAttribute("aria-label", "The picture");
}
function tidy() {
  for (const card of cards()) {
    if (card.parentElement.closest("[id='" + card.id + "']")) { card.removeAttribute("id"); continue; }
    card.setAttribute("role", "group"); // so that they say what "Lock" and "Shuffle" belong to
    card.setAttribute("aria-label", card.querySelector("label span")?.textContent.trim() || "");
  }
  for (const code of document.querySelectorAll(".cm-scroller")) // its lines are scrolled sideways on a phone
    if (code.tabIndex < 0) code.tabIndex = 0;
  for (const empty of document.querySelectorAll(".empty[aria-label]")) empty.setAttribute("role", "img");
}
if (props.leads) {
  let tidying = 0;
  const soon = () => { tidying ||= requestAnimationFrame(() => { tidying = 0; tidy(); }); };
  // A picture's button is named at once, so that no screen reader meets it without a name; the rest waits for a frame.
  new MutationObserver((changes) => {
    for (const changed of new Set(changes.map((change) => change.target))) nameButtons(changed);
    soon();
  }).observe(document.body, { childList: true, subtree: true });
  nameButtons(document.body);
  soon();
}

// The slider sets how much of the result the picture `before` covers.
function wipe() {
  find("before").style.clipPath = `inset(0 ${100 - find("wipe").value}% 0 0)`;
}

// The map of regions is a PNG whose gray levels are the regions' indices.
let reading = null;
function read(uri) {
  reading = uri;
  if (!uri) { labels = null; return draw(); }
  const image = new Image();
  image.onload = () => {
    if (reading !== uri) return; // a newer one is loading
    [across, down] = [image.naturalWidth, image.naturalHeight];
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [across, down];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, across, down).data;
    labels = new Uint8Array(across * down);
    for (let i = 0; i < labels.length; i++) labels[i] = pixels[4 * i];
    draw();
  };
  image.src = uri;
}

// The outline runs between the pixels of the region and its neighbors.
function draw() {
  const canvas = find("outline");
  const scale = Math.max(1, Math.round(768 / (Math.max(across, down) || 64)));
  [canvas.width, canvas.height] = [(across || 64) * scale, (down || 64) * scale];
  const context = canvas.getContext("2d");
  const region = pointed !== NONE ? pointed : chosen;
  if (!labels || region === NONE) return;
  const inside = (x, y) => x >= 0 && y >= 0 && x < across && y < down && labels[y * across + x] === region;
  context.beginPath();
  for (let y = 0; y < down; y++) {
    for (let x = 0; x < across; x++) {
      if (!inside(x, y)) continue;
      const [l, t, r, b] = [x * scale, y * scale, (x + 1) * scale, (y + 1) * scale];
      if (!inside(x - 1, y)) { context.moveTo(l, t); context.lineTo(l, b); }
      if (!inside(x + 1, y)) { context.moveTo(r, t); context.lineTo(r, b); }
      if (!inside(x, y - 1)) { context.moveTo(l, t); context.lineTo(r, t); }
      if (!inside(x, y + 1)) { context.moveTo(l, b); context.lineTo(r, b); }
    }
  }
  context.lineCap = "round";
  for (const [width, color] of [[9, "rgba(255,255,255,.95)"], [4, "#5b3fd6"]]) {
    context.lineWidth = width;
    context.strokeStyle = color;
    context.stroke();
  }
}

function under(event) {
  if (!labels) return NONE;
  const box = find("picture").getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * across);
  const y = Math.floor(((event.clientY - box.top) / box.height) * down);
  return x >= 0 && y >= 0 && x < across && y < down ? labels[y * across + x] : NONE;
}

function point(region) {
  if (region === pointed) return;
  pointed = region;
  const name = region === NONE ? "" : props.value.regions[region] || "";
  find("tip").textContent = name;
  find("tip").hidden = !name;
  draw();
}


function choose(region) {
  chosen = region === chosen ? NONE : region;
  for (const card of cards()) card.classList.toggle("sf-chosen", card.id === "sf-dial-" + chosen);
  const card = chosen === NONE ? null : document.getElementById("sf-dial-" + chosen);
  if (props.leads && card) card.scrollIntoView({ block: "nearest", behavior: "smooth" });
  if (props.leads && chosen !== NONE) document.dispatchEvent(new CustomEvent("sf-region", { detail: chosen }));
  draw();
}

find("wipe").addEventListener("input", wipe);

const frame = find("frame");
frame.addEventListener("pointermove", (event) => point(under(event)));
frame.addEventListener("pointerleave", () => point(NONE));
frame.addEventListener("click", (event) => { const region = under(event); if (region !== NONE) choose(region); });

if (props.leads) {
  // Conversely, the dial under the pointer or with the keyboard focus outlines its region.
  const region = (target) => {
    const card = target instanceof Element ? target.closest("[id^='sf-dial-']") : null;
    const number = card ? Number(card.id.slice("sf-dial-".length)) : NaN;
    return Number.isInteger(number) ? number : NONE;
  };
  document.addEventListener("pointerover", (event) => { if (!frame.contains(event.target)) point(region(event.target)); });
  document.addEventListener("focusin", (event) => { if (!frame.contains(event.target)) point(region(event.target)); });
}

async function copy(text, button) {
  const before = button.dataset.text || (button.dataset.text = button.textContent);
  let copied = true;
  try { await navigator.clipboard.writeText(text); } catch (error) { copied = false; }
  button.textContent = copied ? "Copied" : "Shown below";
  setTimeout(() => { button.textContent = before; }, 1500);
  return copied;
}

find("share").addEventListener("click", async (event) => {
  const link = location.origin + location.pathname + "?" + props.value.query;
  const field = find("link");
  field.value = link;
  field.hidden = false;
  if (!(await copy(link, event.currentTarget))) field.select();
});
find("copy").addEventListener("click", async (event) => {
  if (!(await copy(props.value.code, event.currentTarget))) find("details").open = true;
});

// What the server is busy with, until a picture or an error comes.
function wait() {
  find("busy").textContent = props.busy?.text || "";
  find("busy").hidden = !props.busy?.text;
}

function tell() {
  find("busy").hidden = true;
  if (props.message) asked = again = false;
  find("message").textContent = props.message || "";
  find("message").hidden = !props.message;
}

watch("value", () => { show(); tell(); remember(); });
watch("message", tell);
watch("busy", wait);
watch("outline", () => { // the map of a picture that is shown already
  if (props.outline && props.outline.key === props.value?.key && !props.value.draft) read(props.outline.labels);
});
show();

// --- Enlarged pictures and other formats: the server makes them, and the browser saves them. ---
let transparent = false; // whether files are saved without the background
element.addEventListener("click", (event) => {
  const button = event.target.closest(".sf-file, .sf-png");
  const plain = button?.classList.contains("sf-png") && !transparent; // a link to the exact picture
  if (!button || plain) return;
  event.preventDefault();
  trigger("download", { kind: button.dataset.kind || "1x", transparent });
});
find("cutout").addEventListener("click", () => {
  transparent = !transparent;
  find("cutout").setAttribute("aria-pressed", String(transparent));
});
watch("file", () => {
  if (!props.file) return;
  const link = document.createElement("a");
  link.href = props.file.uri;
  link.download = props.file.name;
  link.click();
});

// A browser may forbid storage, as for pages within other sites' pages, and it may be full: then nothing is kept.
function stored(access) {
  try { return access(); } catch (error) { return null; }
}

// --- Small pictures are enlarged smoothly, or with their pixels: the same for the whole page. ---
const PIXELS = "stylefusion-pixels";
function showPixels(on) {
  document.documentElement.classList.toggle("sf-show-pixels", on);
  find("pixels").setAttribute("aria-pressed", String(on));
}
if (props.leads) {
  showPixels(stored(() => localStorage.getItem(PIXELS)) === "yes");
  find("pixels").addEventListener("click", () => {
    const on = !document.documentElement.classList.contains("sf-show-pixels");
    showPixels(on);
    stored(() => localStorage.setItem(PIXELS, on ? "yes" : ""));
  });
}

// --- The picture survives a reload. ---
const KEPT = "stylefusion-picture", MOST = 900_000; // characters: the server reads requests of at most 1 MB
function remember() {
  const value = props.value;
  if (!props.leads || !value || value.draft) return;
  const address = new URL(location.href);
  for (const name of ["model", "recipe"]) address.searchParams.delete(name);
  for (const [name, text] of new URLSearchParams(value.query)) address.searchParams.set(name, text);
  history.replaceState(history.state, "", address);
  stored(() => sessionStorage.removeItem(KEPT));
  if (!value.query && value.recipe.length < MOST)
    stored(() => sessionStorage.setItem(KEPT, JSON.stringify({ model: value.model, recipe: value.recipe })));
}
if (props.leads && !new URLSearchParams(location.search).has("recipe")) {
  const kept = stored(() => sessionStorage.getItem(KEPT));
  if (kept) setTimeout(() => trigger("upload", JSON.parse(kept)), 300); // after the page's own first events
}

// --- Undo and redo by keyboard, as in other editors. ---
if (props.leads) document.addEventListener("keydown", (event) => {
  const key = event.key.toLowerCase(), again = key === "y" || (key === "z" && event.shiftKey);
  if (!(event.ctrlKey || event.metaKey) || event.altKey || (key !== "z" && key !== "y")) return;
  const typing = event.target instanceof Element && event.target.matches("textarea, input[type=text]");
  if (typing || element.offsetParent === null) return; // in a text, or on another tab
  event.preventDefault();
  const button = document.getElementById(again ? "sf-redo" : "sf-undo");
  if (button && !button.disabled) button.click();
});
