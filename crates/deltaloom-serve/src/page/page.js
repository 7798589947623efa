"use strict";

// Seconds between two looks at the metrics, and how many are drawn.
const PERIOD = 2;
const POINTS = 60;

const get = (id) => document.getElementById(id);
const key = get("key");
const model = get("model");
const prompt_ = get("prompt");
const log = get("log");

/** The conversation so far, as the API wants it. */
let messages = [];
/** Ends the running request. */
let running = null;
/** The metrics before, and the curves of each. */
let before = null;
const curves = new Map();

key.value = sessionStorage.getItem("key") ?? "";

function headers() {
  const all = { "content-type": "application/json" };
  if (key.value) all.authorization = `Bearer ${key.value}`;
  return all;
}

/** Asks the server; fails with what it says. */
async function ask(path, options = {}) {
  const response = await fetch(path, { headers: headers(), ...options });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const { message, code } = body?.error ?? { message: `${response.status} ${response.statusText}` };
  const hint = code === "template_failed" ? ' Choose "text to continue".' : "";
  const error = new Error(`${message}${hint}`);
  error.status = response.status;
  throw error;
}

function tell(element, text, isWrong = false) {
  if (element.textContent !== text) element.textContent = text;
  element.classList.toggle("wrong", isWrong);
}

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) {
    count /= 1000;
    unit += 1;
  }
  return `${count >= 100 || unit === 0 ? Math.round(count) : count.toFixed(1)} ${units[unit]}`;
}

// Chat

async function loadModels() {
  try {
    const { data } = await (await ask("v1/models")).json();
    const ids = data.map((entry) => entry.id);
    // An open list would close.
    if (ids.join() !== Array.from(model.options, (option) => option.value).join()) {
      const chosen = model.value;
      model.replaceChildren(...ids.map((id) => new Option(id, id)));
      if (ids.includes(chosen)) model.value = chosen;
    }
    tell(get("state"), data.length ? "" : "This key may use no model.", !data.length);
    return data;
  } catch (error) {
    tell(get("state"), error.status === 401 ? "Enter a key." : error.message, true);
    return [];
  }
}

function show(role, text) {
  const element = document.createElement("div");
  element.className = `message ${role}`;
  element.textContent = text;
  log.append(element);
  log.scrollTop = log.scrollHeight;
  return element;
}

/** The JSON of each event of a stream of server-sent events. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const lines = held.split("\n");
    held = lines.pop();
    for (const line of lines) {
      const data = line.startsWith("data:") ? line.slice(5).trim() : "";
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

function request(text) {
  const isChat = get("kind").value === "chat";
  const body = {
    model: model.value,
    max_tokens: Number(get("tokens").value),
    temperature: Number(get("temperature").value),
    stream: true,
    stream_options: { include_usage: true },
  };
  if (!isChat) return ["v1/completions", { ...body, prompt: text }];
  messages.push({ role: "user", content: text });
  return ["v1/chat/completions", { ...body, messages }];
}

async function send(text) {
  const [path, body] = request(text);
  const isChat = path.includes("chat");
  show("user", text);
  const answer = show("assistant", isChat ? "" : text);
  running = new AbortController();
  get("stop").disabled = false;
  get("send").disabled = true;
  const speed = get("speed");
  let count = 0;
  let first = 0;
  let content = "";
  let note = "";
  const rate = () => {
    const seconds = (performance.now() - first) / 1000;
    return count > 1 && seconds > 0 ? `${((count - 1) / seconds).toFixed(1)} tokens/s` : "";
  };
  try {
    const options = { method: "POST", body: JSON.stringify(body), signal: running.signal };
    for await (const event of events(await ask(path, options))) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0];
      if (choice) {
        first ||= performance.now();
        count += 1;
        const part = isChat ? choice.delta.content : choice.text;
        content += part ?? "";
        const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
        answer.append(part ?? "");
        if (isAtEnd) log.scrollTop = log.scrollHeight;
        tell(speed, rate());
      }
      if (event.usage) {
        const { prompt_tokens: read, completion_tokens: written } = event.usage;
        note = `, ${read} read, ${written} written`;
      }
    }
    tell(speed, `${rate()}${note}`);
  } catch (error) {
    const isStopped = error.name === "AbortError";
    tell(speed, isStopped ? `Stopped. ${rate()}` : error.message, !isStopped);
    if (!content && isChat) answer.remove();
  }
  if (isChat) {
    if (content) messages.push({ role: "assistant", content });
    else messages.pop();
  }
  running = null;
  get("stop").disabled = true;
  get("send").disabled = false;
}

function submit() {
  const text = prompt_.value;
  if (running || !text.trim() || !model.value) return;
  prompt_.value = "";
  send(text);
}

get("form").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
prompt_.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
get("stop").addEventListener("click", () => {
  running?.abort();
  prompt_.focus();
});
get("clear").addEventListener("click", () => {
  running?.abort();
  messages = [];
  log.replaceChildren();
  tell(get("speed"), "");
  prompt_.focus();
});
model.addEventListener("change", () => {
  messages = [];
  log.replaceChildren();
});
key.addEventListener("change", () => {
  sessionStorage.setItem("key", key.value);
  look();
});

// Numbers

function svg(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
  return element;
}

function names(left, right) {
  const row = document.createElement("div");
  row.className = "names";
  for (const text of [left, right]) {
    const span = document.createElement("span");
    span.textContent = text;
    row.append(span);
  }
  row.firstChild.title = left;
  return row;
}

/** A share from 0 to 1 as a bar. */
function bar(name, value, share) {
  const element = document.createElement("div");
  element.className = "bar";
  const picture = svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
  const width = Math.max(0, Math.min(1, share || 0)) * 100;
  picture.append(
    svg("rect", { class: "track", width: 100, height: 10 }),
    svg("rect", { class: share > 1 ? "rest" : "fill", width, height: 10 }),
  );
  element.append(names(name, value), picture);
  return element;
}

function curve(name, points, text) {
  const element = document.createElement("div");
  element.className = "curve";
  const most = Math.max(...points, 1e-9);
  const picture = svg("svg", {
    viewBox: `0 0 ${POINTS - 1} 100`,
    preserveAspectRatio: "none",
    role: "img",
    "aria-label": `${name}: ${text(points.at(-1))}, at most ${text(most)}`,
  });
  const start = POINTS - points.length;
  const place = (value, i) => `${start + i},${(96 - (92 * value) / most).toFixed(1)}`;
  picture.append(
    svg("line", { class: "floor", x1: 0, y1: 98, x2: POINTS - 1, y2: 98 }),
    svg("polyline", { class: "trace", points: points.map(place).join(" ") }),
  );
  element.append(names(name, `${text(points.at(-1))}, at most ${text(most)}`), picture);
  return element;
}

/** Samples of a Prometheus text: a list of labels and values for each name. */
function parse(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = /^deltaloom:(\w+)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[name] = value.replace(/\\(.)/g, (_, letter) => (letter === "n" ? "\n" : letter));
    }
    if (!found.has(match[1])) found.set(match[1], []);
    found.get(match[1]).push({ labels, value: Number(match[3]) });
  }
  return found;
}

const total = (metrics, name) => (metrics.get(name) ?? []).reduce((sum, it) => sum + it.value, 0);

function draw(metrics, models) {
  const budget = total(metrics, "budget_bytes");
  const resident = total(metrics, "resident_bytes");
  const hasBudget = budget > 0 && budget < 2 ** 60;
  const share = hasBudget ? resident / budget : resident > 0 ? 1 : 0;
  const rows = [
    bar("Fine-tunes in memory", hasBudget ? `${bytes(resident)} of ${bytes(budget)}` : bytes(resident), share),
    bar(
      "Keys and values",
      bytes(total(metrics, "kv_cache_bytes")),
      total(metrics, "kv_cache_usage_perc"),
    ),
  ];
  const mapped = total(metrics, "mapped_bytes");
  if (mapped) rows.push(names("Base and containers", bytes(mapped)));
  get("memory").replaceChildren(...rows);

  const of = new Map();
  for (const { labels, value } of metrics.get("tenant_resident_bytes") ?? []) of.set(labels.tenant, value);
  const most = Math.max(...of.values(), 1);
  const tenants = models.filter((entry) => entry.id !== entry.root);
  const rowsOf = tenants.map(({ id, meta }) => {
    const value = of.get(id) ?? meta?.resident_bytes ?? 0;
    const pinned = meta?.pinned ? ", pinned" : "";
    return bar(id, `${bytes(value)}, packed ${bytes(meta?.packed_bytes ?? 0)}${pinned}`, value / most);
  });
  get("tenants").replaceChildren(...(rowsOf.length ? rowsOf : [names("None", "")]));

  const now = performance.now();
  const tokens = total(metrics, "step_tokens_total");
  const seconds = before ? (now - before.now) / 1000 : 0;
  const add = (name, value) => curves.set(name, [...(curves.get(name) ?? []), value].slice(-POINTS));
  add("Tokens per second", seconds > 0 ? Math.max(0, tokens - before.tokens) / seconds : 0);
  add("Requests that run", total(metrics, "num_requests_running"));
  add("Requests that wait", total(metrics, "num_requests_waiting"));
  add("Fine-tunes in memory", resident);
  before = { now, tokens };
  const text = (name) => (name === "Fine-tunes in memory" ? bytes : (value) => String(Math.round(value * 10) / 10));
  get("curves").replaceChildren(...[...curves].map(([name, points]) => curve(name, points, text(name))));
}

let timer = 0;

async function look() {
  clearTimeout(timer);
  const models = await loadModels();
  try {
    draw(parse(await (await ask("metrics")).text()), models);
    tell(get("metrics-state"), "");
  } catch (error) {
    tell(get("metrics-state"), `No metrics: ${error.message}`, true);
  }
  if (!document.hidden) timer = setTimeout(look, PERIOD * 1000);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) look();
});
look();
