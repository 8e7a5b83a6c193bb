// The text around a passage: a window of segments that grows when its ends are scrolled to; and the search.
"use strict";

const [BEFORE, AFTER] = [1000, 2000]; // characters around a passage that are laid out at first
const MOST_HITS = 20000;

const reader = {
  low: 0,
  high: 0,
  current: -1, // segment whose passage was opened
  shown: null, // selection, reads and their highest weight
  hits: [], // [start, stop] in all texts, joined
  hit: -1,

  /** Shows a segment, painted for the selection. */
  open(segment) {
    if (segment < this.low || segment >= this.high) {
      this.low = this.high = this.further(segment, -1, BEFORE);
      $("reader").replaceChildren();
      this.extend(this.further(segment, 1, AFTER));
    }
    this.current = segment;
    this.paintAll();
    const box = $("reader");
    const element = this.element(segment);
    box.scrollTop = element.offsetTop - box.clientHeight / 4;
    this.grow(); // where little fits a line, nothing would be left to scroll to
    const block = blockOf(segment);
    const weight = this.shown.reads.get(block);
    const read = weight === undefined ? "not read" : percent(weight) + " of the attention";
    $("place").textContent = `block ${grouped(block)}, ${placeOf(block)}, ${read}`;
  },

  /** The segment that lies so many characters before or behind another, or the first or last. */
  further(segment, step, characters) {
    let i = segment;
    while (characters > 0 && i + Math.min(0, step) >= 0 && i + Math.min(0, step) < segmentCount) {
      characters -= segmentText(i + Math.min(0, step)).length;
      i += step;
    }
    return i;
  },

  element(segment) {
    return $("reader").querySelector(`[data-segment="${segment}"]`);
  },

  extend(high) {
    const made = document.createDocumentFragment();
    for (let i = this.high; i < high; i++) made.append(...this.made(i));
    $("reader").append(made);
    this.high = Math.max(this.high, high);
  },

  extendBefore(low) {
    const made = document.createDocumentFragment();
    for (let i = low; i < this.low; i++) made.append(...this.made(i));
    const tall = $("reader").scrollHeight;
    $("reader").prepend(made);
    this.low = low;
    $("reader").scrollTop += $("reader").scrollHeight - tall;
  },

  grow() {
    const { scrollTop, clientHeight, scrollHeight } = $("reader");
    if (scrollTop < 300 && this.low > 0) this.extendBefore(this.further(this.low, -1, BEFORE));
    if (scrollTop + clientHeight > scrollHeight - 300) this.extend(this.further(this.high, 1, BEFORE));
  },

  made(segment) {
    const text = textOf(segment);
    const element = document.createElement("span");
    element.className = "segment";
    element.dataset.segment = segment;
    this.paint(element, segment);
    if (segment !== firstSegments[text]) return [element];
    const heading = document.createElement("h3");
    heading.textContent = visible(facts.texts[text].name);
    return [heading, element];
  },

  paintAll() {
    for (const element of $("reader").querySelectorAll(".segment")) this.paint(element, Number(element.dataset.segment));
  },

  /** Fills the element of a segment: its text, what was read of it and what was found in it marked. */
  paint(element, segment) {
    const text = segmentText(segment);
    const marks = [...this.readsIn(segment), ...this.hitsIn(segment)];
    const cuts = [...new Set([0, text.length, ...marks.flatMap(({ from, to }) => [from, to])])].sort((a, b) => a - b);
    const parts = [];
    for (let i = 0; i + 1 < cuts.length; i++) {
      const inside = marks.filter(({ from, to }) => from <= cuts[i] && cuts[i + 1] <= to);
      parts.push(this.run(visible(text.slice(cuts[i], cuts[i + 1])), inside));
    }
    element.replaceChildren(...parts);
    element.classList.toggle("current", segment === this.current);
  },

  run(text, marks) {
    if (!marks.length) return document.createTextNode(text);
    const element = document.createElement("mark");
    const strongest = marks.reduce((a, b) => ((b.weight || 0) > (a.weight || 0) ? b : a));
    const hit = marks.find(({ hit }) => hit !== undefined);
    element.textContent = text;
    element.style.setProperty("--strength", strongest.weight ? 0.14 + 0.66 * Math.sqrt(strongest.weight / this.shown.most) : 0);
    if (strongest.weight) element.dataset.block = strongest.block;
    if (strongest.weight) element.title = `block ${grouped(strongest.block)}: ${percent(strongest.weight)}`;
    if (hit) element.classList.add("hit");
    if (hit && hit.hit === this.hit) element.classList.add("current");
    return element;
  },

  /** What was read of a segment: the passage of its own block, and of blocks before it that end in its characters. */
  readsIn(segment) {
    const found = [];
    for (let i = segment; i >= 0 && (i === segment || (edges[i] && textOf(i) === textOf(segment))); i--) {
      const block = blockOf(i);
      const weight = this.shown.reads.get(block);
      if (weight === undefined) continue;
      for (const [inside, from, to] of passageOf(i)) if (inside === segment) found.push({ from, to, weight, block });
    }
    return found;
  },

  // The search: all texts are parsed and joined once, when it is first used.

  joined: null,

  join() {
    if (this.joined !== null) return;
    this.begins = new Int32Array(segmentCount + 1);
    const texts = [];
    for (let i = 0; i < segmentCount; i++) {
      texts.push(segmentText(i));
      this.begins[i + 1] = this.begins[i] + texts[i].length;
    }
    this.joined = texts.join("");
  },

  segmentAt(place) {
    let low = 0;
    for (let high = segmentCount; high - low > 1;) {
      const middle = (low + high) >> 1;
      if (this.begins[middle] <= place) low = middle; else high = middle;
    }
    return low;
  },

  /** Finds words as they are written, in any case; white space matches any white space. */
  search(query) {
    this.hits = [];
    this.hit = -1;
    const words = query.trim().split(/\s+/).map((word) => word.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"));
    if (query.trim()) {
      this.join();
      for (const found of this.joined.matchAll(new RegExp(words.join("\\s+"), "giu"))) {
        this.hits.push([found.index, found.index + found[0].length]);
        if (this.hits.length >= MOST_HITS) break;
      }
    }
  },

  /** Opens the next hit, or with -1 the one before; at first the one nearest behind the open passage. */
  step(by) {
    const count = this.hits.length;
    if (!count) return;
    if (this.hit < 0) {
      const here = this.current < 0 ? 0 : this.begins[this.current];
      this.hit = Math.max(0, this.hits.findIndex(([start]) => start >= here));
    } else {
      this.hit = (this.hit + by + count) % count;
    }
    this.open(this.segmentAt(this.hits[this.hit][0]));
    const mark = $("reader").querySelector("mark.hit.current");
    if (mark) $("reader").scrollTop = mark.offsetTop - $("reader").clientHeight / 3;
  },

  hitsIn(segment) {
    if (!this.hits.length) return [];
    const [begin, end] = [this.begins[segment], this.begins[segment + 1]];
    let low = 0;
    for (let high = this.hits.length; low < high;) {
      const middle = (low + high) >> 1;
      if (this.hits[middle][1] <= begin) low = middle + 1; else high = middle;
    }
    const found = [];
    for (let i = low; i < this.hits.length && this.hits[i][0] < end; i++) {
      const [start, stop] = this.hits[i];
      found.push({ from: Math.max(start, begin) - begin, to: Math.min(stop, end) - begin, hit: i });
    }
    return found;
  },

  hitBlocks() {
    return new Set(this.hits.map(([start]) => blockOf(this.segmentAt(start))));
  },
};

/** Where a block lies: its texts and tokens. */
function placeOf(block) {
  const names = segmentsOf(block).map((segment) => visible(facts.texts[textOf(segment)].name));
  const first = block * facts.blockSize;
  return `${names.join(" and ")}, tokens ${grouped(first)} to ${grouped(Math.min(first + facts.blockSize, facts.tokens))}`;
}
