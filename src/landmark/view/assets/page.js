// The page: what is chosen, and what a click, a key, a finger or the wheel does.
"use strict";

const MOST_PASSAGES = 40;
const SNIPPET = 240; // characters
const shown = {
  selection: { token: -1, layer: -1, head: -1 },
  reads: new Map(), // block to weight, for the selection
  all: new Map(), // the same for all tokens
  ranks: [], // [block, weight] by falling weight
  rank: 0,
  most: 1,
  from: 0, // blocks in sight
  to: facts.blocks,
  hitBlocks: new Set(),
};
reader.shown = shown;

// Choosing.

function choose(change) {
  const before = { ...shown.selection };
  Object.assign(shown.selection, change);
  const { layer, head } = shown.selection;
  shown.reads = readsOf(shown.selection);
  if (layer !== before.layer || head !== before.head || !shown.all.size) shown.all = readsOf({ token: -1, layer, head });
  shown.ranks = [...shown.reads].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
  shown.most = shown.ranks.length ? shown.ranks[0][1] : 1;
  showToken();
  listPassages();
  openPassage(0);
  draw();
}

function chooseToken(token) {
  choose({ token: Math.max(0, Math.min(tokenCount - 1, token)) });
  const element = $("tokens").children[shown.selection.token];
  element.scrollIntoView({ block: "nearest" });
  element.focus({ preventScroll: true });
}

/** Opens the passage of a rank among those of the selection. */
function openPassage(rank) {
  shown.rank = Math.max(0, Math.min(shown.ranks.length - 1, rank));
  for (const [i, item] of [...$("list").children].entries()) {
    item.firstChild.setAttribute("aria-current", i === shown.rank);
  }
  $("before").disabled = shown.rank <= 0;
  $("after").disabled = shown.rank >= shown.ranks.length - 1;
  if (shown.ranks.length) openBlock(shown.ranks[shown.rank][0]);
}

function openBlock(block) {
  reader.open(segmentsOf(block)[0]);
}

function showToken() {
  const { token, layer, head } = shown.selection;
  for (const [i, element] of [...$("tokens").children].entries()) {
    element.setAttribute("aria-selected", i === token);
    element.tabIndex = i === Math.max(0, token) ? 0 : -1;
  }
  $("chosen").textContent = token < 0 ? "all generated tokens" : `\u201c${tokenName(token)}\u201d, token ${token + 1} of ${tokenCount}`;
  $("all").setAttribute("aria-pressed", token < 0);
  $("layer").value = layer;
  $("head").value = head;
  const away = localOf(shown.selection);
  let known = 0;
  for (const weight of shown.reads.values()) known += weight;
  const weak = 1 - away - known;
  $("split-read").style.width = (1 - away) * 100 + "%";
  $("split").setAttribute("aria-label", `${percent(1 - away)} of the attention went to opened blocks`);
  $("shares").textContent = `${percent(1 - away)} of the attention to ${grouped(shown.reads.size)} blocks, ${percent(away)} to the local window`
    + (weak > 0.005 ? `; ${percent(weak)} in blocks too weak for this page` : "");
}

function listPassages() {
  const items = shown.ranks.slice(0, MOST_PASSAGES).map(([block, weight], rank) => {
    const [item, button] = [document.createElement("li"), document.createElement("button")];
    const add = (name, text) => {
      const span = document.createElement("span");
      span.className = name;
      span.textContent = text;
      button.append(span);
    };
    add("weight", percent(weight));
    add("where", placeOf(block));
    add("snippet", visible(segmentsOf(block).map(passageText).join(" ").replace(/\s+/g, " ").slice(0, SNIPPET)));
    button.type = "button";
    button.dataset.rank = rank;
    button.dataset.block = block;
    item.append(button);
    return item;
  });
  if (!items.length) items.push(Object.assign(document.createElement("li"), { textContent: "No block was read here." }));
  $("list").replaceChildren(...items);
}

// Drawing, and the part that is in sight.

function draw() {
  drawOverview(shown);
  drawStrip(shown);
  drawHeat(shown);
  drawGrid(shown);
  const [first, last] = [Math.round(shown.from) * facts.blockSize, Math.min(facts.tokens, Math.round(shown.to) * facts.blockSize)];
  $("range").textContent = `tokens ${grouped(first)} to ${grouped(last)}`;
  $("zoom-all").disabled = $("zoom-out").disabled = shown.to - shown.from >= facts.blocks;
}

let waiting = 0;
function drawSoon() {
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(draw);
}

function look(from, to) {
  const span = Math.min(facts.blocks, Math.max(Math.min(LEAST_BLOCKS, facts.blocks), to - from));
  shown.from = Math.max(0, Math.min(facts.blocks - span, from));
  shown.to = shown.from + span;
  drawSoon();
}

/** Zooms by a factor, with the block `centre` staying where it is. */
function zoom(factor, centre) {
  look(centre - (centre - shown.from) * factor, centre + (shown.to - centre) * factor);
}

function centreOfSight() {
  const block = shown.ranks.length ? shown.ranks[shown.rank][0] + 0.5 : 0;
  return block >= shown.from && block < shown.to ? block : (shown.from + shown.to) / 2;
}

function zoomIn() {
  const block = shown.ranks.length ? shown.ranks[shown.rank][0] + 0.5 : (shown.from + shown.to) / 2;
  if (block < shown.from || block >= shown.to) look(block - (shown.to - shown.from) / 2, block + (shown.to - shown.from) / 2);
  zoom(0.5, block);
}

// The map under a pointer: click, drag, wheel, two fingers.

function placeIn(canvas, event) {
  const box = canvas.getBoundingClientRect();
  return { x: event.clientX - box.left, y: event.clientY - box.top, width: box.width };
}

function rowAt(y) {
  const token = Math.floor(y / heatRow());
  return token >= 0 && token < tokenCount ? token : -1;
}

function movable(canvas, click) {
  const fingers = new Map();
  let moved = false;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, placeIn(canvas, event).x);
    if (fingers.size === 1) moved = false;
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!fingers.has(event.pointerId)) return;
    const { x, width } = placeIn(canvas, event);
    const [last, span] = [fingers.get(event.pointerId), shown.to - shown.from];
    if (!moved && Math.abs(x - last) < 4) return;
    moved = true;
    const others = [...fingers].filter(([id]) => id !== event.pointerId);
    fingers.set(event.pointerId, x);
    if (others.length) {
      const other = others[0][1];
      zoom(Math.max(0.5, Math.min(2, Math.abs(last - other) / Math.max(8, Math.abs(x - other)))), shown.from + other / width * span);
    } else {
      look(shown.from - (x - last) / width * span, shown.to - (x - last) / width * span);
    }
  });
  const end = (event) => {
    if (fingers.delete(event.pointerId) && !moved && event.type === "pointerup") click(placeIn(canvas, event));
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const { x, width } = placeIn(canvas, event);
    const span = shown.to - shown.from;
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      const by = (event.deltaX || event.deltaY) / width * span;
      look(shown.from + by, shown.to + by);
    } else {
      zoom(event.deltaY > 0 ? 1.25 : 0.8, shown.from + x / width * span);
    }
  }, { passive: false });
}

function openAt(block) {
  const rank = shown.ranks.findIndex(([ranked]) => ranked === block);
  if (rank >= 0) openPassage(rank); else openBlock(block);
}

movable($("strip"), ({ x, width }) => openAt(blockAt(x, width, shown, shown.reads)));
movable($("heat"), ({ x, y, width }) => {
  const token = rowAt(y);
  if (token < 0) return;
  const block = blockAt(x, width, shown, readsOf({ ...shown.selection, token }));
  chooseToken(token);
  openAt(block);
});

let grip = null;
$("overview").addEventListener("pointerdown", (event) => {
  $("overview").setPointerCapture(event.pointerId);
  const { x, width } = placeIn($("overview"), event);
  const [block, span] = [x / width * facts.blocks, shown.to - shown.from];
  if (span >= facts.blocks) return openAt(blockAt(x, width, { from: 0, to: facts.blocks }, shown.reads));
  grip = block >= shown.from && block < shown.to ? block - shown.from : span / 2;
  look(block - grip, block - grip + span);
});
$("overview").addEventListener("pointermove", (event) => {
  if (grip === null) return;
  const { x, width } = placeIn($("overview"), event);
  const from = x / width * facts.blocks - grip;
  look(from, from + shown.to - shown.from);
});
for (const name of ["pointerup", "pointercancel"]) $("overview").addEventListener(name, () => { grip = null; });

$("grid").addEventListener("click", (event) => {
  const { x, y, width } = placeIn($("grid"), event);
  const layer = Math.min(layerCount - 1, Math.floor(x / width * layerCount));
  const head = Math.min(facts.heads - 1, Math.floor(y / $("grid").clientHeight * facts.heads));
  const same = layer === shown.selection.layer && head === shown.selection.head;
  choose(same ? { layer: -1, head: -1 } : { layer, head });
});

// What lies under the pointer, in words.

function tip(event, text) {
  $("tip").hidden = !text;
  if (!text) return;
  $("tip").textContent = text;
  $("tip").style.left = Math.min(event.clientX + 14, window.innerWidth - $("tip").offsetWidth - 8) + "px";
  $("tip").style.top = Math.min(event.clientY + 14, window.innerHeight - $("tip").offsetHeight - 8) + "px";
}

function tipped(id, words) {
  $(id).addEventListener("pointermove", (event) => tip(event, event.buttons ? "" : words(placeIn($(id), event))));
  $(id).addEventListener("pointerleave", () => tip(null, ""));
}

function tipOfBlock(block, reads) {
  return `block ${grouped(block)}, ${placeOf(block)}: ${percent(reads.get(block) || 0)}`;
}

tipped("strip", ({ x, width }) => tipOfBlock(blockAt(x, width, shown, shown.reads), shown.reads));
tipped("heat", ({ x, y, width }) => {
  const token = rowAt(y);
  if (token < 0) return "";
  const reads = readsOf({ ...shown.selection, token });
  return `\u201c${tokenName(token)}\u201d, ${tipOfBlock(blockAt(x, width, shown, reads), reads)}`;
});
tipped("grid", ({ x, y, width }) => {
  const layer = Math.min(layerCount - 1, Math.floor(x / width * layerCount));
  const head = Math.min(facts.heads - 1, Math.floor(y / $("grid").clientHeight * facts.heads));
  return `layer ${facts.layers[layer]}, head ${head}: ${percent(1 - localOf({ ...shown.selection, layer, head }))} to blocks`;
});

// Search, theme, buttons.

let searched = "";
function search() {
  searched = $("query").value;
  reader.search(searched);
  shown.hitBlocks = reader.hitBlocks();
  reader.paintAll();
  showHits();
  drawSoon();
}

function showHits() {
  const count = reader.hits.length;
  const more = count >= MOST_HITS ? "+" : "";
  $("hits").textContent = !$("query").value.trim() ? "" : count ? `${reader.hit + 1 || "\u2013"} / ${grouped(count)}${more}` : "none";
}

function step(by) {
  reader.step(by);
  showHits();
}

let typed = 0;
$("query").addEventListener("input", () => {
  clearTimeout(typed);
  typed = setTimeout(search, 150);
});
$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typed);
  if ($("query").value !== searched) search();
  step(1);
});
$("hit-before").addEventListener("click", () => step(-1));

function turnTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  readColours();
  draw();
}

function turn(which, count, by) {
  choose({ [which]: (shown.selection[which] + 1 + by + count + 1) % (count + 1) - 1 });
}

$("theme").addEventListener("click", turnTheme);
$("help").addEventListener("click", () => $("keys").showModal());
$("all").addEventListener("click", () => choose({ token: shown.selection.token < 0 ? 0 : -1 }));
$("layer").addEventListener("change", () => choose({ layer: Number($("layer").value) }));
$("head").addEventListener("change", () => choose({ head: Number($("head").value) }));
$("zoom-in").addEventListener("click", zoomIn);
$("zoom-out").addEventListener("click", () => zoom(2, centreOfSight()));
$("zoom-all").addEventListener("click", () => look(0, facts.blocks));
$("before").addEventListener("click", () => openPassage(shown.rank - 1));
$("after").addEventListener("click", () => openPassage(shown.rank + 1));
$("reader").addEventListener("scroll", () => reader.grow(), { passive: true });
$("list").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) openPassage(Number(button.dataset.rank));
});
$("tokens").addEventListener("click", (event) => {
  const element = event.target.closest(".token");
  if (element) chooseToken(Number(element.dataset.token));
});

// Keys.

const KEYS = {
  ArrowLeft: () => chooseToken(shown.selection.token - 1),
  ArrowRight: () => chooseToken(shown.selection.token + 1),
  Home: () => chooseToken(0),
  End: () => chooseToken(tokenCount - 1),
  ArrowUp: () => openPassage(shown.rank - 1),
  ArrowDown: () => openPassage(shown.rank + 1),
  a: () => choose({ token: shown.selection.token < 0 ? 0 : -1 }),
  l: () => turn("layer", layerCount, 1),
  L: () => turn("layer", layerCount, -1),
  h: () => turn("head", facts.heads, 1),
  H: () => turn("head", facts.heads, -1),
  "+": zoomIn,
  "=": zoomIn,
  "-": () => zoom(2, centreOfSight()),
  0: () => look(0, facts.blocks),
  "/": () => $("query").focus(),
  n: () => step(1),
  N: () => step(-1),
  t: turnTheme,
  "?": () => $("keys").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  if (event.target.closest("input, select")) {
    if (event.key !== "Escape") return;
    event.preventDefault(); // browsers would empty the search
    event.target.blur();
    return;
  }
  const scrolls = event.target.closest("#reader") && ["ArrowUp", "ArrowDown", "Home", "End"].includes(event.key);
  if (!KEYS[event.key] || scrolls) return;
  event.preventDefault();
  KEYS[event.key]();
});

// The beginning.

function fill() {
  const documents = facts.texts.filter(({ kind }) => kind === "document");
  $("name").textContent = visible(documents.length === 1 ? documents[0].name : `${documents[0].name} and ${documents.length - 1} more`);
  $("about").textContent = `${grouped(facts.tokens)} tokens in ${grouped(facts.blocks)} blocks of ${facts.blockSize}; `
    + `${visible(facts.model)}, ${layerCount} layers, ${facts.heads} heads`;
  $("prompt").textContent = visible(facts.prompt);
  const away = facts.generated.map((_, token) => 1 - localOf({ token, layer: -1, head: -1 }));
  const most = away.reduce((a, b) => Math.max(a, b), 1e-9);
  const tokens = facts.generated.map(({ text, name }, token) => {
    const element = document.createElement("span");
    element.className = text ? "token" : "token bare";
    element.textContent = visible(text).replace(/\n/g, "\u21b5\n") || visible(name);
    element.dataset.token = token;
    element.setAttribute("role", "option");
    element.style.setProperty("--share", (away[token] / most) ** 2);
    return element;
  });
  $("tokens").replaceChildren(...tokens);
  const option = (value, text) => new Option(text, value);
  $("layer").replaceChildren(option(-1, "all"), ...facts.layers.map((layer, i) => option(i, layer)));
  $("head").replaceChildren(option(-1, "all"), ...Array.from({ length: facts.heads }, (_, i) => option(i, i)));
}

readColours();
fill();
choose({ token: -1 });
new ResizeObserver(drawSoon).observe($("heat"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColours(); draw(); });
