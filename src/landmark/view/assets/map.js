// The canvases: the whole text, the part of it that is zoomed to, blocks against tokens, layers against heads.
"use strict";

const HEAT_ROWS = [2, 12, 200]; // least and most pixels of a row, and of the map while its rows can shrink
const [STRIP, AXIS] = [58, 18]; // pixels
const LEAST_BLOCKS = 8; // in sight when zoomed in fully
let colours = {};

function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["read", "hit", "all", "line", "field", "soft", "ink", "card"]) {
    colours[name] = style.getPropertyValue("--" + name).trim();
  }
}

/** The drawing surface of a canvas in CSS pixels, cleared. */
function surface(canvas, height) {
  const scale = window.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  canvas.style.height = height + "px";
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.clearRect(0, 0, width, height);
  return { pen, width, height };
}

/** Sums of weights in each pixel column from block `from` to `to`. */
function columnsOf(reads, from, to, width) {
  const columns = new Float32Array(Math.max(1, Math.ceil(width)));
  for (const [block, weight] of reads) {
    if (block < from || block >= to) continue;
    columns[Math.min(columns.length - 1, Math.floor((block + 0.5 - from) / (to - from) * width))] += weight;
  }
  return columns;
}

function bars(pen, columns, bar, height, colour, most) {
  pen.fillStyle = colour;
  columns.forEach((weight, x) => {
    const tall = Math.max(weight > 0 ? 2 : 0, Math.sqrt(weight / most) * (height - 2));
    if (weight > 0) pen.fillRect(x + 0.5 - bar / 2, height - tall, bar, tall);
  });
}

/** Both profiles, all tokens behind the selected one, and search hits, over blocks `from` to `to`. */
function drawProfile(canvas, height, from, to, shown, below = 0) {
  const { pen, width } = surface(canvas, height + below);
  const own = columnsOf(shown.reads, from, to, width);
  const all = columnsOf(shown.all, from, to, width);
  const bar = Math.max(2, Math.min(18, width / (to - from) - 1));
  pen.fillStyle = colours.field;
  pen.fillRect(0, 0, width, height);
  for (const [columns, colour] of [[all, colours.all], [own, colours.read]]) {
    bars(pen, columns, bar, height, colour, columns.reduce((a, b) => Math.max(a, b), 1e-9));
  }
  pen.fillStyle = colours.hit;
  for (const block of shown.hitBlocks) {
    if (block >= from && block < to) pen.fillRect((block + 0.5 - from) / (to - from) * width - 1, 0, 2, 6);
  }
  return { pen, width };
}

function drawOverview(shown) {
  const { pen, width } = drawProfile($("overview"), 30, 0, facts.blocks, shown);
  const left = shown.from / facts.blocks * width;
  const right = shown.to / facts.blocks * width;
  if (shown.to - shown.from < facts.blocks) {
    pen.globalAlpha = 0.12;
    pen.fillStyle = colours.ink;
    pen.fillRect(left, 0, right - left, 30);
    pen.globalAlpha = 1;
  }
  pen.strokeStyle = colours.soft;
  pen.lineWidth = 1.5;
  pen.strokeRect(left + 0.75, 0.75, Math.max(3, right - left - 1.5), 28.5);
}

function drawStrip(shown) {
  const { pen, width } = drawProfile($("strip"), STRIP, shown.from, shown.to, shown, AXIS);
  const at = (token) => (token / facts.blockSize - shown.from) / (shown.to - shown.from) * width;
  // Where texts begin; names only where there is room for them.
  pen.font = "11px system-ui, sans-serif";
  pen.textBaseline = "top";
  let free = -Infinity;
  for (const text of facts.texts) {
    const x = at(text.first);
    if (x < 0 || x > width) continue;
    pen.fillStyle = colours.line;
    pen.fillRect(x, 0, 1, STRIP);
    const name = visible(text.name).slice(0, 40);
    const room = pen.measureText(name).width + 8;
    if (x > free && x + room < width) {
      pen.fillStyle = colours.soft;
      pen.fillText(name, x + 4, 3);
      free = x + room;
    }
  }
  drawAxis(pen, shown, width, STRIP);
}

/** Pixels of a row of the heat map. */
function heatRow() {
  const [least, most, whole] = HEAT_ROWS;
  return Math.max(least, Math.min(most, Math.floor(whole / tokenCount)));
}

let heat = { key: "", image: null };

/** The map as an image, one pixel for each token and column, made anew only when what it shows changes. */
function heatImage(shown, width) {
  const { layer, head } = shown.selection;
  const key = [layer, head, shown.from, shown.to, width, colours.read].join();
  if (heat.key === key) return heat.image;
  const image = document.createElement("canvas");
  [image.width, image.height] = [Math.max(1, Math.ceil(width)), tokenCount];
  const share = shares(shown.selection);
  const [sums, perBlock] = [new Float64Array(image.width * tokenCount), width / (shown.to - shown.from)];
  for (let token = 0; token < tokenCount; token++) {
    for (let i = starts[token]; i < starts[token + 1]; i++) {
      if (opened[i] < shown.from || opened[i] >= shown.to) continue;
      const x = Math.min(image.width - 1, Math.floor((opened[i] + 0.5 - shown.from) * perBlock));
      sums[token * image.width + x] += weights[i] * share[cells[i]];
    }
  }
  const most = sums.reduce((a, b) => Math.max(a, b), 1e-9);
  const pen = image.getContext("2d");
  const pixels = pen.createImageData(image.width, tokenCount);
  const [red, green, blue] = inkOf(colours.read);
  const bar = Math.max(2, Math.round(perBlock - 1));
  sums.forEach((sum, at) => {
    if (sum <= 0) return;
    const strength = 30 + 225 * Math.sqrt(sum / most);
    const [x, row] = [at % image.width, at - at % image.width];
    const from = Math.max(0, Math.round(x + 0.5 - bar / 2));
    for (let i = row + from; i < row + Math.min(image.width, from + bar); i++) {
      if (pixels.data[4 * i + 3] >= strength) continue;
      pixels.data[4 * i] = red;
      pixels.data[4 * i + 1] = green;
      pixels.data[4 * i + 2] = blue;
      pixels.data[4 * i + 3] = strength;
    }
  });
  pen.putImageData(pixels, 0, 0);
  heat = { key, image };
  return image;
}

/** Red, green and blue of a colour written as #rrggbb. */
function inkOf(colour) {
  return [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
}

function drawHeat(shown) {
  const row = heatRow();
  const { pen, width, height } = surface($("heat"), heatRow() * tokenCount);
  pen.fillStyle = colours.field;
  pen.fillRect(0, 0, width, height);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(heatImage(shown, width), 0, 0, width, height);
  pen.fillStyle = colours.field;
  if (row > 4) for (let y = row - 1; y < height; y += row) pen.fillRect(0, y, width, 1);
  if (shown.selection.token >= 0) {
    pen.strokeStyle = colours.ink;
    pen.strokeRect(0.5, Math.max(0.5, shown.selection.token * row - 0.5), width - 1, row);
  }
}

/** Numbers of tokens under the strip. */
function drawAxis(pen, shown, width, top) {
  const span = (shown.to - shown.from) * facts.blockSize;
  const rough = span / Math.max(2, width / 110);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  pen.font = "11px system-ui, sans-serif";
  pen.textBaseline = "top";
  const first = Math.ceil(shown.from * facts.blockSize / step) * step;
  for (let token = first; token < shown.to * facts.blockSize; token += step) {
    const x = (token / facts.blockSize - shown.from) / (shown.to - shown.from) * width;
    const label = grouped(token);
    const wide = pen.measureText(label).width;
    pen.fillStyle = colours.line;
    pen.fillRect(x, top, 1, 4);
    pen.fillStyle = colours.soft;
    pen.fillText(label, Math.max(0, Math.min(width - wide, x - wide / 2)), top + 5);
  }
}

/** Layers from left to right, heads from top to bottom: the share of attention that went to blocks. */
function drawGrid(shown) {
  const cell = facts.heads > 16 ? 4 : 8;
  const { pen, width } = surface($("grid"), facts.heads * cell);
  const { token, layer, head } = shown.selection;
  const sums = new Float64Array(cellCount);
  const [first, last] = token < 0 ? [0, tokenCount] : [token, token + 1];
  for (let i = first * cellCount; i < last * cellCount; i++) sums[i % cellCount] += FULL - local[i];
  const most = sums.reduce((a, b) => Math.max(a, b), 1);
  const wide = width / layerCount;
  const share = shares(shown.selection);
  sums.forEach((sum, i) => {
    const [x, y] = [Math.floor(i / facts.heads) * wide, (i % facts.heads) * cell];
    pen.globalAlpha = share[i] ? 1 : 0.35;
    pen.fillStyle = colours.field;
    pen.fillRect(x, y, wide - 1, cell - 1);
    pen.globalAlpha *= sum / most;
    pen.fillStyle = colours.read;
    pen.fillRect(x, y, wide - 1, cell - 1);
  });
  pen.globalAlpha = 1;
  if (layer >= 0 || head >= 0) {
    pen.strokeStyle = colours.ink;
    const [x, y] = [layer < 0 ? 0 : layer * wide, head < 0 ? 0 : head * cell];
    pen.strokeRect(x + 0.5, y + 0.5, (layer < 0 ? width : wide) - 2, (head < 0 ? facts.heads * cell : cell) - 2);
  }
}

/** The block under a pixel of the strip or map: the one read most within some pixels, or the one that lies there. */
function blockAt(x, width, shown, reads) {
  const per = (shown.to - shown.from) / width;
  const here = shown.from + x * per;
  let best = -1;
  for (const [block, weight] of reads) {
    if (Math.abs(block + 0.5 - here) <= Math.max(0.5, 4 * per) && (best < 0 || weight > reads.get(best))) best = block;
  }
  return best >= 0 ? best : Math.max(0, Math.min(facts.blocks - 1, Math.floor(here)));
}
