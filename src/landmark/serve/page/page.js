"use strict";

// Texts of the server are only ever put into the page as text.

const element = (id) => document.getElementById(id);
let asking = null; // the AbortController of the request that runs
let modelName = "";

function headers() {
  const key = element("key").value.trim();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function refuse(response) {
  const body = await response.json().catch(() => ({}));
  throw new Error(body.error ? body.error.message : `the server answered ${response.status}`);
}

async function getJson(path) {
  const response = await fetch(path, { headers: headers() });
  return response.ok ? response.json() : refuse(response);
}

function tell(text, isError = false) {
  element("status").textContent = text;
  element("status").classList.toggle("error", isError);
}

async function loadContexts() {
  try {
    const [models, contexts] = [await getJson("v1/models"), await getJson("v1/contexts")];
    modelName = models.data[0].id;
    offerChat(models.data[0].chat);
    const before = element("context").value;
    const options = [new Option("none", "")];
    for (const one of contexts.data) {
      const size = one.status === "ready" ? `${one.tokens.toLocaleString("en")} tokens` : one.status;
      const option = new Option(`${one.name} (${size})`, one.id);
      option.disabled = one.status !== "ready";
      options.push(option);
    }
    element("context").replaceChildren(...options);
    const found = options.find((option) => option.value === before && !option.disabled);
    const first = options.find((option) => option.value && !option.disabled);
    element("context").value = (before && found ? found : first || options[0]).value;
    tell(`model ${modelName}`);
  } catch (error) {
    tell(error.message, true);
  }
}

// A model that cannot chat is asked to continue a text.
function offerChat(chat) {
  const [question] = element("kind").options;
  question.disabled = !chat;
  if (!chat) element("kind").value = "text";
}

function requestBody() {
  const body = {
    model: modelName,
    max_tokens: Number(element("tokens").value),
    stream: true,
    sentences: true,
    stream_options: { include_usage: true },
  };
  if (element("context").value) body.context = element("context").value;
  const question = element("question").value;
  if (element("kind").value === "text") return ["v1/completions", { ...body, prompt: question }];
  return ["v1/chat/completions", { ...body, messages: [{ role: "user", content: question }] }];
}

// The data of server-sent events, as they arrive.
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function ask() {
  asking = new AbortController();
  const answer = element("answer");
  answer.replaceChildren();
  element("sources").replaceChildren();
  element("stop").hidden = false;
  element("ask").disabled = true;
  tell("waiting");
  try {
    const [path, body] = requestBody();
    const response = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", ...headers() },
      body: JSON.stringify(body),
      signal: asking.signal,
    });
    if (!response.ok) await refuse(response);
    for await (const event of eventsOf(response)) take(event, answer);
  } catch (error) {
    tell(error.name === "AbortError" ? "stopped" : error.message, error.name !== "AbortError");
  } finally {
    element("stop").hidden = true;
    element("ask").disabled = false;
    asking = null;
  }
}

function take(event, answer) {
  if (event.error) throw new Error(event.error.message);
  if (event.usage) {
    const { completion_tokens: written, prompt_tokens_details: details } = event.usage;
    tell(`${written} tokens, after ${details.cached_tokens.toLocaleString("en")} that were read before`);
  }
  for (const choice of event.choices) {
    answer.append(choice.text ?? choice.delta.content ?? "");
    if (choice.landmark) showSentences(answer, choice.landmark);
  }
}

// Offsets count characters, as Python does: JavaScript's strings count some twice.
function showSentences(answer, read) {
  const letters = Array.from(answer.textContent);
  const parts = [];
  let end = 0;
  for (const sentence of read.sentences) {
    parts.push(letters.slice(end, sentence.first).join(""));
    const span = document.createElement("span");
    span.textContent = letters.slice(sentence.first, sentence.last).join("");
    span.className = "sentence";
    span.tabIndex = 0;
    span.setAttribute("role", "button");
    span.setAttribute("aria-pressed", "false");
    const choose = () => chooseSentence(span, sentence.sources);
    span.addEventListener("click", choose);
    span.addEventListener("keydown", (event) => {
      if (event.key === "Enter") choose();
    });
    parts.push(span);
    end = sentence.last;
  }
  parts.push(letters.slice(end).join(""));
  answer.replaceChildren(...parts);
  showSources("What was read for the answer", read.sources);
}

function chooseSentence(span, sources) {
  for (const other of document.querySelectorAll(".sentence")) {
    other.setAttribute("aria-pressed", String(other === span));
  }
  showSources("What was read for this sentence", sources);
}

function showSources(title, sources) {
  element("chosen").textContent = title;
  element("sources").replaceChildren(...sources.map(sourceItem));
  if (!sources.length) {
    const none = document.createElement("p");
    none.textContent = "No passage of a document was opened.";
    element("sources").append(none);
  }
}

function sourceItem(source) {
  const item = document.createElement("li");
  const where = document.createElement("div");
  where.className = "where";
  const share = (100 * source.weight).toFixed(1);
  where.textContent = `${source.document}, characters ${source.first} to ${source.last}, ${share} % of attention`;
  const text = document.createElement("blockquote");
  text.textContent = source.text;
  item.append(where, text);
  return item;
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
element("stop").addEventListener("click", () => asking && asking.abort());
element("key").addEventListener("change", loadContexts);
element("who").addEventListener("submit", (event) => event.preventDefault());
element("context").addEventListener("focus", loadContexts);
loadContexts();
