"use strict";

// Texts of the server are only ever put into the page as text.

const element = (id) => document.getElementById(id);
const [SOON, LATER] = [1000, 30000]; // milliseconds between two looks at the contexts, while one is read and else
const NAMED = 3; // documents of a job that are named
let asking = null; // the AbortController of the request that runs
let modelName = "";
let offered = null; // the contexts that the page has offered
let looking = 0; // the timer of the next look
const read = new Map(); // contexts that were being read at the last look: their names by id

function headers() {
  const key = element("key").value.trim();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function refuse(response) {
  const body = await response.json().catch(() => ({}));
  const error = new Error(body.error ? body.error.message : `the server answered ${response.status}`);
  error.needsKey = response.status === 401;
  throw error;
}

async function getJson(path) {
  const response = await fetch(path, { headers: headers() });
  return response.ok ? response.json() : refuse(response);
}

function tell(text) {
  element("status").textContent = text;
}

function showError(message) {
  element("error").textContent = message;
  element("error").hidden = !message;
}

// Contexts: what may be asked, and what is being read.

/** Looks at what may be asked, now and again later. A server that wants a key is asked again when one is given. */
async function look() {
  clearTimeout(looking);
  try {
    if (!modelName) await loadModel();
    const contexts = (await getJson("v1/contexts")).data;
    if (offered === null) showError("");
    offer(contexts);
    const jobs = contexts.filter((one) => one.job);
    showJobs(jobs);
    await showFailures(contexts);
    looking = setTimeout(look, jobs.length ? SOON : LATER);
  } catch (error) {
    if (error.needsKey) askForKey(error);
    else {
      showError(error instanceof TypeError ? "the server cannot be reached" : error.message);
      looking = setTimeout(look, LATER);
      offered = null;
    }
  }
}

function askForKey(error) {
  element("who").hidden = false;
  if (element("key").value) showError(error.message);
  else tell("This server wants a key.");
  element("key").focus();
}

async function loadModel() {
  const model = (await getJson("v1/models")).data[0];
  modelName = model.id;
  element("about").textContent = `model ${modelName}`;
  tell("");
  offerChat(model.chat);
}

/** The contexts as options; where there was none to choose before, the first that is ready is chosen. */
function offer(contexts) {
  const select = element("context");
  const options = [new Option("none", "")];
  for (const one of contexts) {
    const size = one.status === "ready" ? `${one.tokens.toLocaleString("en")} tokens` : one.status;
    const option = new Option(`${one.name} (${size})`, one.id);
    option.disabled = one.status !== "ready";
    options.push(option);
  }
  const known = (value) => options.some((option) => option.value === value && !option.disabled);
  const first = options.find((option) => option.value && !option.disabled);
  const hadChoice = [...select.options].some((option) => option.value && !option.disabled);
  const chosen = hadChoice && known(select.value) ? select.value : first ? first.value : "";
  const now = JSON.stringify(options.map((option) => [option.value, option.text]));
  if (now !== offered) {
    select.replaceChildren(...options);
    select.value = chosen;
  }
  offered = now;
}

function showJobs(contexts) {
  element("reading").hidden = !contexts.length;
  element("jobs").replaceChildren(...contexts.map(({ name, job }) => jobItem(name, job)));
}

function jobItem(name, job) {
  const item = document.createElement("li");
  const more = job.documents.length > NAMED ? ` and ${job.documents.length - NAMED} more` : "";
  const documents = job.documents.slice(0, NAMED).join(", ") + more;
  const done = job.tokens
    ? `${job.tokens_read.toLocaleString("en")} of ${job.tokens.toLocaleString("en")} tokens`
    : "waits for its turn";
  const bar = document.createElement("progress");
  bar.setAttribute("aria-label", `${name}: ${done}`);
  if (job.tokens) [bar.max, bar.value] = [job.tokens, job.tokens_read];
  item.append(`${name}: ${documents}, ${done}`, bar);
  return item;
}

/** Shows why a context that was being read is not any more, where its last job failed. */
async function showFailures(contexts) {
  for (const [id, name] of [...read]) {
    const found = contexts.find((one) => one.id === id);
    if (found && found.job) continue;
    read.delete(id);
    const jobs = found ? (await getJson(`v1/contexts/${id}/jobs`)).data : [];
    const last = jobs[jobs.length - 1];
    if (last && last.status === "failed") showError(`${name} is not read: ${last.error}`);
  }
  for (const one of contexts) if (one.job) read.set(one.id, one.name);
}

// A model that cannot chat is asked to continue a text.
function offerChat(chat) {
  const [question] = element("kind").options;
  question.disabled = !chat;
  element("kind").value = chat ? "chat" : "text";
  nameQuestion();
}

function nameQuestion() {
  const text = element("kind").value === "text";
  element("question-title").textContent = text ? "Text to continue" : "Question";
  element("question").placeholder = text ? "It is continued word for word." : "";
}

// Asking.

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
  if (asking) return;
  asking = new AbortController();
  const answer = element("answer");
  answer.replaceChildren();
  element("sources").replaceChildren();
  element("stop").hidden = false;
  element("ask").disabled = true;
  showError("");
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
    const stopped = error.name === "AbortError";
    tell(stopped ? "stopped" : "");
    if (!stopped) showError(error instanceof TypeError ? "the server cannot be reached" : error.message);
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
    const cached = details.cached_tokens ? `, after ${details.cached_tokens.toLocaleString("en")} that were read before` : "";
    tell(`${written} ${written === 1 ? "token" : "tokens"}${cached}`);
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
  const again = sources.some((source) => source.reread) ? "Passages read again with the question come first. " : "";
  element("hint").textContent = sources.length
    ? `${again}Each with its share of the attention. A click shows the whole passage.`
    : "No passage of a document was opened.";
  element("sources").replaceChildren(...sources.map(sourceItem));
  const [first] = document.querySelectorAll("#sources details");
  if (first) first.open = true;
}

function made(tag, name, text) {
  const found = document.createElement(tag);
  found.className = name;
  found.textContent = text;
  return found;
}

function sourceItem(source) {
  const item = document.createElement("li");
  const details = document.createElement("details");
  const summary = document.createElement("summary");
  summary.append(
    made("span", "weight", `${(100 * source.weight).toFixed(1)} %${source.reread ? " again" : ""}`),
    made("span", "where", `${source.document}, characters ${source.first} to ${source.last}`),
    made("span", "snippet", source.text.trim()),
  );
  details.append(summary, made("blockquote", "prose", source.text.trim()));
  item.append(details);
  return item;
}

function turnTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
element("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  element("form").requestSubmit();
});
element("stop").addEventListener("click", () => asking && asking.abort());
element("kind").addEventListener("change", nameQuestion);
element("theme").addEventListener("click", turnTheme);
element("who").addEventListener("submit", (event) => {
  event.preventDefault();
  [modelName, offered] = ["", null];
  look();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(looking);
  else if (modelName) look();
});
look();
