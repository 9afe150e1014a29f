// The page: one composer, and one pane for each arm that it asks.

import { Arm } from "./client.js";

const REFRESH = 2000; // ms between looks at an arm's metrics
const $ = (id) => document.getElementById(id);

function make(tag, className, text = "") {
  const found = document.createElement(tag);
  found.className = className;
  found.textContent = text; // never HTML: answers are not to be trusted
  return found;
}

class Pane {
  constructor(url) {
    this.root = $("pane").content.cloneNode(true).firstElementChild;
    this.messages = [];
    this.part("url").value = url;
    this.part("arm").addEventListener("submit", (event) => {
      event.preventDefault();
      this.connect();
    });
    $("panes").append(this.root);
    this.connect();
  }

  part(name) {
    return this.root.querySelector(`.${name}`);
  }

  async connect() {
    this.arm = new Arm(this.part("url").value, this.part("key").value);
    this.before = null; // another arm's counters say nothing of this one's
    try {
      const card = await this.arm.card();
      this.part("name").textContent = card.variant ? `${card.id} · ${card.variant}` : card.id;
      this.part("digest").textContent = card.digest?.slice(0, 19) ?? "";
      this.part("digest").title = card.digest ?? "";
      this.light(true, `connected, ${card.max_model_len} tokens of context`);
    } catch (error) {
      this.part("name").textContent = "not connected";
      this.part("digest").textContent = "";
      if (error.status === 401) this.part("key").hidden = false;
      this.light(false, error.message);
    }
    await this.refresh();
  }

  light(good, title) {
    this.part("light").className = `light ${good ? "ok" : "bad"}`;
    this.part("light").title = title;
  }

  async refresh() {
    const metrics = await this.arm.metrics().catch(() => null);
    const now = performance.now();
    this.part("status").replaceChildren(...status(metrics, this.before, now - this.seen));
    [this.before, this.seen] = [metrics, now];
  }

  add(...parts) {
    const list = this.part("messages");
    const item = make("li", "");
    item.append(...parts);
    list.append(item);
    list.scrollTop = list.scrollHeight;
    return item;
  }

  clear() {
    this.messages = [];
    this.part("messages").replaceChildren();
  }

  async ask(content, shown, settings, signal) {
    this.add(...shown).className = "user";
    this.messages.push({ role: "user", content });
    const [thoughts, text, timing] = [make("details", ""), make("div", "text"), make("div", "timing")];
    const thought = make("div", "text");
    thoughts.append(make("summary", "", "Thoughts"), thought);
    thoughts.hidden = true;
    this.add(thoughts, text, timing).className = "assistant";
    const start = performance.now();
    let first = 0, last = 0, usage = null;
    try {
      for await (const piece of this.arm.chat({ messages: this.messages, ...settings }, signal)) {
        if (piece.reasoning || piece.content) {
          last = performance.now();
          first ||= last;
        }
        if (piece.reasoning) thoughts.hidden = false;
        thought.textContent += piece.reasoning ?? "";
        text.textContent += piece.content ?? "";
        usage = piece.usage ?? usage;
        this.follow();
      }
      timing.textContent = timed(start, first, last, usage);
      this.messages.push({ role: "assistant", content: text.textContent });
    } catch (error) {
      this.messages.pop(); // the question can be asked again
      timing.textContent = signal.aborted ? "stopped" : error.message;
      timing.classList.toggle("error", !signal.aborted);
    }
    this.follow();
  }

  /** Keeps the end in view, unless the reader has scrolled up. */
  follow() {
    const list = this.part("messages");
    if (list.scrollHeight - list.scrollTop - list.clientHeight < 120) list.scrollTop = list.scrollHeight;
  }
}

function timed(start, first, last, usage) {
  const parts = [`first token ${((first || performance.now()) - start).toFixed(0)} ms`];
  const tokens = usage?.completion_tokens ?? 0;
  if (tokens > 1 && last > first) parts.push(`${((1000 * (tokens - 1)) / (last - first)).toFixed(1)} tokens/s`);
  parts.push(`${tokens} tokens`);
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  if (cached) parts.push(`${cached} of ${usage.prompt_tokens} prompt tokens remembered`);
  return parts.join(" · ");
}

/** What the status line shows; rates are from the look before, `ms` ago. */
function status(metrics, before, ms) {
  if (!metrics) return [make("div", "error", "no metrics")];
  const rate = (name) => {
    const old = before?.get(name);
    const grown = metrics.get(name) - old; // it shrinks where an arm was started again
    return grown >= 0 ? (1000 * grown) / ms : undefined;
  };
  const shows = {
    Memory: [metrics.get("process_resident_memory_bytes"), (x) => `${(x / 1e6).toFixed(0)} MB`],
    Running: [metrics.get("arm_running_sequences"), String],
    Waiting: [metrics.get("arm_waiting_sequences"), String],
    "Tokens/s": [rate("arm_output_tokens_total"), (x) => x.toFixed(1)],
    CPU: [rate("process_cpu_seconds_total"), (x) => `${(100 * x).toFixed(0)} %`],
    Power: [metrics.get("arm_device_power_watts") ?? rate("arm_device_energy_joules_total"), (x) => `${x.toFixed(1)} W`],
    Temperature: [metrics.get("arm_device_temperature_celsius"), (x) => `${x.toFixed(0)} °C`],
  };
  return Object.entries(shows).map(([name, [value, show]]) => {
    const entry = make("div", "");
    entry.append(make("dt", "", name), make("dd", "", value === undefined ? "–" : show(value)));
    if (value === undefined) entry.title = "Not told by this machine, or not yet";
    return entry;
  });
}

const panes = [new Pane(location.origin)];
let files = [];
let running = null;

function attach(found) {
  files.push(...[...found].filter((file) => /^(image|video)\//.test(file.type)));
  $("files").replaceChildren(...files.map((file, at) => {
    const [figure, remove] = [make("figure", ""), make("button", "", "×")];
    remove.type = "button";
    remove.title = `Remove ${file.name}`;
    remove.addEventListener("click", () => {
      files.splice(at, 1);
      attach([]);
    });
    figure.append(preview(file), remove);
    return figure;
  }));
}

function preview(file) {
  const found = make(file.type.startsWith("video/") ? "video" : "img", "");
  found.src = URL.createObjectURL(file);
  found.addEventListener(found.tagName === "IMG" ? "load" : "loadeddata", () => URL.revokeObjectURL(found.src));
  if (found.tagName === "VIDEO") found.controls = true;
  else found.alt = file.name;
  return found;
}

function dataUri(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

async function part(file) {
  const kind = file.type.startsWith("video/") ? "video_url" : "image_url";
  return { type: kind, [kind]: { url: await dataUri(file) } };
}

async function send() {
  const text = $("prompt").value.trim();
  if (running || !(text || files.length)) return;
  running = new AbortController();
  busy();
  try {
    const sent = files;
    const content = [...(await Promise.all(sent.map(part))), ...(text ? [{ type: "text", text }] : [])];
    const settings = { temperature: $("temperature").valueAsNumber || 0, max_tokens: $("max-tokens").valueAsNumber || 256 };
    const shown = () => [...sent.map(preview), make("div", "text", text)];
    $("prompt").value = "";
    files = [];
    attach([]);
    await Promise.all(panes.map((pane) => pane.ask(content, shown(), settings, running.signal)));
  } finally {
    running = null;
    busy();
  }
}

function busy() {
  $("send").disabled = Boolean(running);
  $("stop").hidden = !running;
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
$("prompt").addEventListener("paste", (event) => attach(event.clipboardData.files));
$("attach").addEventListener("change", (event) => {
  attach(event.target.files);
  event.target.value = "";
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("composer").classList.toggle("drop", kind === "dragover");
    if (kind === "drop") attach(event.dataTransfer.files);
  });
}
$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", () => {
  running?.abort();
  panes.forEach((pane) => pane.clear());
});
$("compare").addEventListener("change", (event) => {
  if (event.target.checked) panes.push(new Pane(location.origin));
  else panes.pop().root.remove();
});
setInterval(() => {
  if (!document.hidden) panes.forEach((pane) => pane.refresh());
}, REFRESH);
