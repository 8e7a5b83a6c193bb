// What the page holds, and the sums that are shown. Weights are shares of attention: 1 is all of it.
"use strict";

const $ = (id) => document.getElementById(id);
const facts = JSON.parse($("facts").textContent);
const edges = JSON.parse($("edges").textContent);

function numbers(id) {
  const element = $(id);
  const bytes = atob(element.textContent);
  const buffer = new Uint8Array(bytes.length);
  for (let i = 0; i < bytes.length; i++) buffer[i] = bytes.charCodeAt(i);
  const kinds = { uint16: Uint16Array, uint32: Uint32Array };
  element.textContent = "";
  return new kinds[element.dataset.kind](buffer.buffer);
}

const FULL = 65535;
const starts = numbers("starts");
const cells = numbers("cells");
const opened = numbers("opened");
const weights = numbers("weights");
const local = numbers("local");
const tokenCount = facts.generated.length;
const layerCount = facts.layers.length;
const cellCount = layerCount * facts.heads;

// A selection: one generated token or all (-1), one layer or all, one head or all.

/** What a weight of each cell, a head of a layer, counts in the mean over those of the selection; 0 for others. */
function shares({ layer, head }) {
  const cellsIn = (layer < 0 ? layerCount : 1) * (head < 0 ? facts.heads : 1);
  return Float64Array.from({ length: cellCount }, (_, cell) => {
    const chosen = (layer < 0 || Math.floor(cell / facts.heads) === layer) && (head < 0 || cell % facts.heads === head);
    return chosen ? 1 / FULL / cellsIn : 0;
  });
}

/** The mean weight of each block that was read, as a Map, over the layers and heads of the selection. */
function readsOf(selection) {
  const first = selection.token < 0 ? 0 : selection.token;
  const last = selection.token < 0 ? tokenCount : selection.token + 1;
  const share = shares(selection);
  const sums = new Float64Array(facts.blocks);
  for (let i = starts[first]; i < starts[last]; i++) sums[opened[i]] += weights[i] * share[cells[i]];
  const found = new Map();
  sums.forEach((sum, block) => { if (sum > 0) found.set(block, sum / (last - first)); });
  return found;
}

/** The weight that stayed outside of opened blocks: the local window, the chunk, attention sinks. */
function localOf(selection) {
  const first = selection.token < 0 ? 0 : selection.token;
  const last = selection.token < 0 ? tokenCount : selection.token + 1;
  const share = shares(selection);
  let sum = 0;
  for (let i = first * cellCount; i < last * cellCount; i++) sum += local[i] * share[i % cellCount];
  return sum / (last - first);
}

// Texts are cut into segments: the part of a block that lies in one text. They are parsed when they are first shown.

const pieces = [];
const firstSegments = [];
let segmentCount = 0;
for (const text of facts.texts) {
  firstSegments.push(segmentCount);
  segmentCount += Math.floor((text.stop - 1) / facts.blockSize) - Math.floor(text.first / facts.blockSize) + 1;
}

function segmentText(segment) {
  const piece = Math.floor(segment / facts.pieceSize);
  pieces[piece] = pieces[piece] || JSON.parse($("text-" + piece).textContent);
  return pieces[piece][segment % facts.pieceSize];
}

/** The number of the text that a segment belongs to. */
function textOf(segment) {
  let low = 0;
  for (let high = firstSegments.length; high - low > 1;) {
    const middle = (low + high) >> 1;
    if (firstSegments[middle] <= segment) low = middle; else high = middle;
  }
  return low;
}

function blockOf(segment) {
  const text = textOf(segment);
  return Math.floor(facts.texts[text].first / facts.blockSize) + segment - firstSegments[text];
}

/** The segments of a block: several, where texts end in it. */
function segmentsOf(block) {
  const found = [];
  let low = 0;
  for (let high = facts.texts.length; high - low > 1;) {
    const middle = (low + high) >> 1;
    if (facts.texts[middle].first <= block * facts.blockSize) low = middle; else high = middle;
  }
  for (let text = low; text < facts.texts.length && facts.texts[text].first < (block + 1) * facts.blockSize; text++) {
    const segment = firstSegments[text] + block - Math.floor(facts.texts[text].first / facts.blockSize);
    if (textOf(segment) === text && blockOf(segment) === block) found.push(segment);
  }
  return found;
}

/** The passage of a segment as [segment, from, to] of the segments that it touches. */
function passageOf(segment) {
  const [before, behind] = edges[segment] || [0, 0];
  const found = [];
  let rest = segmentText(segment).length + behind;
  let from = before;
  for (let i = segment; rest > from && i < segmentCount && textOf(i) === textOf(segment); i++) {
    const length = segmentText(i).length;
    if (Math.min(rest, length) > from) found.push([i, from, Math.min(rest, length)]);
    rest -= length;
    from = 0;
  }
  return found;
}

function passageText(segment) {
  return passageOf(segment).map(([i, from, to]) => segmentText(i).slice(from, to)).join("");
}

// Shown text: control characters and those that turn the direction of writing are spelled, never obeyed.

const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;

function visible(text) {
  return text.replace(/\r\n/g, "\n").replace(CONTROL, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
}

function percent(share) {
  const value = share * 100;
  return (value >= 10 ? value.toFixed(0) : value >= 0.1 ? value.toFixed(1) : value > 0 ? "<0.1" : "0") + " %";
}

const grouped = (number) => String(number).replace(/\B(?=(\d{3})+$)/g, ",");

/** How a generated token is called in running text. */
function tokenName(token) {
  const { text, name } = facts.generated[token];
  const shown = visible(text).replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5").replace(/^ +$/, "\u2423");
  return shown || visible(name);
}
