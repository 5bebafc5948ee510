"use strict";
const $ = (id) => document.getElementById(id);
const ICONS = {
  send: "M12 19V5M5.5 11.5 12 5l6.5 6.5", stop: "M7 7h10v10H7z",
  retry: "M4 11a8 8 0 0 1 14-4.5L20 9M20 4v5h-5M20 13a8 8 0 0 1-14 4.5L4 15M4 20v-5h5",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1", edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  up: "M7 11v9H4v-9zM7 11l4-7c1.6 0 2.3 1.1 2 2.6L12.500 10H18a2 2 0 0 1 2 2.300l-1 6A2 2 0 0 1 17 20H7",
  down: "M7 13V4H4v9zM7 13l4 7c1.6 0 2.3-1.100 2-2.600L12.500 14H18a2 2 0 0 0 2-2.300l-1-6A2 2 0 0 0 17 4H7",
  before: "M14 6l-6 6 6 6", after: "M10 6l6 6-6 6",
};
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

// A side is a dialog with one model: { model, turns }. A turn is {role: "user", content} or
// {role: "assistant", versions: [{content, rating, about}], shown}.
const state = load("dialogkit.chat", { sides: [], settings: {}, compares: false });
let pairs = load("dialogkit.pairs", []);
let names = [];
let found = null;

function load(name, otherwise) {
  try { return Object.assign(Array.isArray(otherwise) ? [] : {}, otherwise, JSON.parse(localStorage.getItem(name))); }
  catch { return otherwise; }
}
function keep() {
  try {
    localStorage.setItem("dialogkit.chat", JSON.stringify(state));
    localStorage.setItem("dialogkit.pairs", JSON.stringify(pairs));
  } catch { /* a private window, or full: the chat goes on */ }
}
function make(tag, settings = {}, ...children) {
  const { className, text, ...rest } = settings;
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(rest)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}
function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const drawn = document.createElementNS(space, "svg"), path = document.createElementNS(space, "path");
  drawn.setAttribute("viewBox", "0 0 24 24");
  drawn.setAttribute("aria-hidden", "true");
  path.setAttribute("d", ICONS[name]);
  if (name === "stop") path.setAttribute("fill", "currentColor");
  drawn.append(path);
  return drawn;
}
function tool(at, name, label, onclick, more = {}) {
  const settings = { type: "button", title: label, "aria-label": label, "data-name": `${name}-${at}`, onclick, ...more };
  return make("button", settings, icon(name));
}
const said = (turn) => turn.role === "user" ? turn.content : turn.versions[turn.shown].content;
function hear(text) { $("heard").textContent = text; }
async function copy(text, side) {
  try { await navigator.clipboard.writeText(text); hear("Copied"); }
  catch { side.notify("The browser did not allow copying.", true); side.show(); }
}

// What is shown

class Side {
  constructor(number) {
    this.number = number;
    this.own = state.sides[number] ||= { model: "", turns: [] };
    this.running = this.remark = null;
    this.model = make("select", { className: "plain", "aria-label": number ? "Second model" : "Model" });
    this.model.addEventListener("change", () => { this.own.model = this.model.value; keep(); showAll(); });
    this.head = make("div", { className: "side-head" }, this.model);
    this.list = make("div", { className: "turns" });
    this.area = make("div", { className: "area", tabindex: "0" }, this.list);
    this.root = make("section", { className: "side" }, this.head, this.area);
    $("sides").append(this.root);
  }
  get turns() { return this.own.turns; }
  messages(end) {
    const system = $("system").value.trim();
    const turns = this.turns.slice(0, end).map((turn) => ({ role: turn.role, content: said(turn) }));
    return system ? [{ role: "system", content: system }, ...turns] : turns;
  }
  notify(text, bad = false) { this.remark = text ? { text, bad } : null; if (text) hear(text); }
  show() {
    const shown = this.turns.map((turn, at) => turn.role === "user" ? this.userTurn(turn, at) : this.assistantTurn(turn, at));
    if (!shown.length) {
      shown.push(make("div", { className: "empty" },
        make("h2", { text: this.own.model || "Chat" }), make("p", { text: "Say something to begin." })));
    }
    if (this.remark) shown.push(make("p", { className: `remark ${this.remark.bad ? "bad" : ""}`, text: this.remark.text }));
    const pressed = this.list.contains(document.activeElement) ? document.activeElement.dataset.name : "";
    this.list.replaceChildren(...shown);
    showSend();
    // What is shown anew has lost the focus.
    if (pressed) (this.list.querySelector(`[data-name="${pressed}"]:enabled`) || $(running() ? "send" : "words")).focus();
    this.head.hidden = names.length < 2;
    this.root.hidden = this.number > 0 && !state.compares;
    this.area.setAttribute("aria-label", `Dialog with ${this.own.model || "the model"}`);
    this.area.setAttribute("role", "region");
  }
  userTurn(turn, at) {
    if (turn.edited !== undefined) {
      const field = make("textarea", { rows: Math.min(8, turn.content.split("\n").length + 1), "aria-label": "Edit message" });
      field.value = turn.edited;
      const leave = () => { delete turn.edited; this.show(); };
      const send = () => {
        const content = field.value.trim();
        if (!content || running()) return;
        this.turns.length = at;
        this.ask(content);
      };
      field.addEventListener("input", () => { turn.edited = field.value; });
      field.addEventListener("keydown", (event) => {
        if (event.key === "Escape") leave();
        if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
      });
      queueMicrotask(() => field.focus());
      return make("div", { className: "turn user" }, make("div", { className: "edit" }, field,
        make("div", { className: "row" },
          make("button", { type: "button", className: "button", text: "Cancel", onclick: leave }),
          make("button", { type: "button", className: "button main", text: "Send", onclick: send }))));
    }
    const tools = make("div", { className: "tools" });
    if (at === this.turns.length - 1 && !running()) tools.append(tool(at, "retry", "Retry", () => this.reply(at + 1)));
    tools.append(
      tool(at, "edit", "Edit", () => { turn.edited = turn.content; this.show(); }, { disabled: running() ? "" : undefined }),
      tool(at, "copy", "Copy", () => copy(turn.content, this)));
    return make("div", { className: "turn user" },
      make("h2", { className: "out", text: "You" }), make("div", { className: "text", text: turn.content }), tools);
  }
  assistantTurn(turn, at) {
    const version = turn.versions[turn.shown];
    const isLast = at === this.turns.length - 1;
    const grows = this.running && isLast;
    const text = make("div", { className: `text ${grows ? "waiting" : "done"}`, text: version.content });
    const tools = make("div", { className: "tools" });
    if (!grows) {
      if (turn.versions.length > 1) {
        tools.append(
          tool(at, "before", "Previous reply", () => this.turnTo(turn, at, -1), { disabled: turn.shown ? undefined : "" }),
          make("span", { text: `${turn.shown + 1} / ${turn.versions.length}` }),
          tool(at, "after", "Next reply", () => this.turnTo(turn, at, 1),
            { disabled: turn.shown < turn.versions.length - 1 ? undefined : "" }));
      }
      tools.append(tool(at, "copy", "Copy", () => copy(version.content, this)));
      if (isLast && !this.running) tools.append(tool(at, "retry", "Retry", () => this.reply(at)));
      tools.append(
        tool(at, "up", "Good reply", () => this.rate(turn, at, 1), { "aria-pressed": String(version.rating === 1) }),
        tool(at, "down", "Bad reply", () => this.rate(turn, at, -1), { "aria-pressed": String(version.rating === -1) }),
        make("span", { className: "about", text: version.about || "" }));
    }
    return make("div", { className: "turn assistant" }, make("h2", { className: "out", text: this.own.model }), text, tools);
  }
  turnTo(turn, at, by) {
    if (this.running) return;
    turn.shown += by;
    if (at < this.turns.length - 1) this.turns.length = at + 1; // what followed answered another reply
    keep(); this.show();
  }
  rate(turn, at, rating) {
    const version = turn.versions[turn.shown];
    version.rating = version.rating === rating ? 0 : rating;
    pair(this.messages(at));
    keep(); showAll();
  }
  async ask(content) {
    this.turns.push({ role: "user", content });
    await this.reply(this.turns.length);
  }
  async reply(at) {
    const turn = this.turns[at] || { role: "assistant", versions: [], shown: 0 };
    this.turns[at] = turn;
    const version = { content: "", rating: 0, about: "" };
    turn.versions.push(version);
    turn.shown = turn.versions.length - 1;
    const controller = this.running = new AbortController();
    this.notify("");
    showAll();
    this.area.scrollTop = this.area.scrollHeight;
    const grown = () => [...this.list.querySelectorAll(".turn .text")].at(-1); // anything shown anew replaces it
    await found; // a quick first message is not sent before the models are known
    const started = performance.now();
    let reason = "", tokens = 0, leftOut = 0;
    try {
      const body = { model: this.own.model, messages: this.messages(at), stream: true, truncation: "auto",
        stream_options: { include_usage: true } };
      for (const name of NUMBERS) {
        const value = $(name).value.trim();
        if (value !== "") body[name] = Number(value);
      }
      if ("seed" in body) body.seed += turn.versions.length - 1;
      const response = await fetch("v1/chat/completions",
        { method: "POST", headers: headers(), body: JSON.stringify(body), signal: controller.signal });
      if (!response.ok) throw new Error(await failure(response));
      for await (const chunk of events(response.body)) {
        if (chunk.error) throw new Error(chunk.error.message);
        leftOut = chunk.left_out || 0;
        if (chunk.usage) tokens = chunk.usage.completion_tokens;
        for (const choice of chunk.choices) {
          version.content += choice.delta.content || "";
          reason = choice.finish_reason || reason;
        }
        const area = this.area, follows = area.scrollHeight - area.scrollTop - area.clientHeight < 80;
        if (this.turns[at] === turn) grown().textContent = version.content;
        if (follows) area.scrollTop = area.scrollHeight;
      }
      const seconds = (performance.now() - started) / 1000;
      version.about = `${tokens} tokens, ${seconds.toFixed(1)} s${reason === "length" ? ", cut at the limit" : ""}`;
      if (leftOut) this.notify(`The context is full: the first ${leftOut} messages were left out.`);
      hear(state.compares ? `${this.own.model}: ${version.content}` : version.content);
    } catch (error) {
      if (controller.signal.aborted) version.about = "stopped";
      else {
        this.notify(error instanceof TypeError ? "The server cannot be reached." : error.message, true);
        version.about = "failed";
      }
      if (!version.content) this.dropVersion(turn, at);
    }
    this.running = null;
    keep(); showAll();
    this.area.scrollTop = this.area.scrollHeight;
  }
  dropVersion(turn, at) {
    if (this.turns[at] !== turn) return; // a new chat has begun
    turn.versions.pop();
    turn.shown = Math.max(0, turn.versions.length - 1);
    if (turn.versions.length) return;
    this.turns.length = at;
    if (state.compares) return; // the other side may have replied
    const asked = this.turns.pop(); // what was said goes back to where it was typed
    if (asked && !$("words").value) { $("words").value = asked.content; fit(); }
  }
  clear() {
    if (this.running) this.running.abort();
    this.own.turns = [];
    this.notify("");
  }
}
const sides = [new Side(0), new Side(1)];
const visible = () => state.compares ? sides : sides.slice(0, 1);
const running = () => sides.some((side) => side.running);

function showAll() {
  for (const side of sides) side.show();
  $("compare").hidden = names.length < 2;
  $("compare").setAttribute("aria-pressed", String(state.compares));
  $("model-name").textContent = names.length < 2 ? sides[0].own.model : "";
  document.title = `${visible().map((side) => side.own.model).join(", ")} - dialogkit`;
  $("pairs").textContent = `${pairs.length} ${pairs.length === 1 ? "pair" : "pairs"} so far. Rate two replies to the same ` +
    "message, one up and one down, to make a pair.";
  $("save-pairs").disabled = $("clear-pairs").disabled = !pairs.length;
  $("save-dialog").disabled = $("copy-dialog").disabled = !visible().some((side) => side.turns.some((turn) => turn.role === "assistant"));
}
function showSend() {
  $("send").replaceChildren(icon(running() ? "stop" : "send"));
  $("send").setAttribute("aria-label", running() ? "Stop" : "Send");
  const held = document.activeElement === $("send");
  $("send").disabled = !running() && !$("words").value.trim();
  if (held && $("send").disabled) $("words").focus(); // a disabled button loses the focus
}
function compare(compares) {
  state.compares = compares;
  if (compares) {
    const [first, second] = sides.map((side) => side.own);
    const asked = (own) => JSON.stringify(own.turns.filter((turn) => turn.role === "user").map(said));
    if (asked(first) !== asked(second)) { // both go on from the same dialog
      second.turns = first.turns.map((turn) => turn.role === "user" ? { role: "user", content: turn.content } :
        { role: "assistant", versions: [{ content: said(turn), rating: 0, about: `by ${first.model}` }], shown: 0 });
    }
    if (first.model === second.model) second.model = names.find((name) => name !== first.model);
    sides[1].model.value = second.model;
  }
  keep(); showAll();
}

// Ratings: each reply rated up makes a pair with each one rated down that answers the same messages, on either side.

function pair(prompt) {
  const same = JSON.stringify(prompt);
  pairs = pairs.filter((pair) => JSON.stringify(pair.prompt) !== same);
  const versions = visible().flatMap((side) => side.turns.flatMap((turn, at) =>
    turn.role === "assistant" && JSON.stringify(side.messages(at)) === same ? turn.versions : []));
  const rated = (value) => versions.filter((each) => each.rating === value && each.content.trim());
  const answer = (each) => [{ role: "assistant", content: each.content }];
  for (const good of rated(1)) {
    for (const bad of rated(-1)) {
      if (good.content !== bad.content) pairs.push({ prompt, chosen: answer(good), rejected: answer(bad) });
    }
  }
}
const lines = (rows) => rows.map((row) => `${JSON.stringify(row)}\n`).join("");
function dialogs() {
  const rows = visible().map((side) => {
    const whole = side.messages(side.turns.length);
    while (whole.length && whole[whole.length - 1].role !== "assistant") whole.pop();
    return { messages: whole };
  });
  return rows.filter((row) => row.messages.length);
}
function save(name, rows) {
  const blob = new Blob([lines(rows)], { type: "application/jsonl" });
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// The server

function headers() {
  const key = sessionStorage.getItem("dialogkit.key");
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}
function needKey() {
  $("key-part").hidden = false;
  openSettings(true);
  $("key").focus();
}
async function failure(response) {
  if (response.status === 401) needKey();
  try { return (await response.json()).error.message; } catch { return `The server answered with status ${response.status}.`; }
}
async function findModels() {
  const first = sides[0];
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (!response.ok) { first.notify(await failure(response), true); showAll(); return; }
    names = (await response.json()).data.map((model) => model.id);
    for (const { own, model, number } of sides) {
      if (!names.includes(own.model)) own.model = names[number] || names[0];
      model.replaceChildren(...names.map((name) => make("option", { value: name, text: name })));
      model.value = own.model;
    }
    if (names.length < 2) state.compares = false;
    first.notify("");
  } catch { first.notify("The server cannot be reached.", true); }
  showAll();
}
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
    }
  }
}

// What is typed and pressed

function fit() {
  const field = $("words");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
  showSend();
}
function openSettings(open) {
  $("settings").hidden = !open;
  $("settings-button").setAttribute("aria-expanded", String(open));
}
function stop() { for (const side of sides) if (side.running) side.running.abort(); }
$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running()) { stop(); return; }
  const content = $("words").value.trim();
  if (!content) return;
  $("words").value = "";
  fit();
  for (const side of visible()) side.ask(content);
});
$("words").addEventListener("input", fit);
$("words").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!running()) $("say").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
$("new").addEventListener("click", () => {
  for (const side of sides) side.clear();
  keep(); showAll();
  $("words").focus();
});
$("compare").addEventListener("click", () => { if (!running()) compare(!state.compares); });
$("settings-button").addEventListener("click", () => openSettings($("settings").hidden));
$("key").addEventListener("change", () => { sessionStorage.setItem("dialogkit.key", $("key").value.trim()); found = findModels(); });
for (const name of ["system", ...NUMBERS]) {
  $(name).value = state.settings[name] || "";
  $(name).addEventListener("input", () => { state.settings[name] = $(name).value; keep(); });
}
$("save-dialog").addEventListener("click", () => save("chat.jsonl", dialogs()));
$("copy-dialog").addEventListener("click", () => copy(lines(dialogs()), sides[0]));
$("save-pairs").addEventListener("click", () => save("preferences.jsonl", pairs));
$("clear-pairs").addEventListener("click", () => {
  pairs = [];
  for (const side of sides) for (const turn of side.turns) for (const version of turn.versions || []) version.rating = 0;
  keep(); showAll();
});
showAll();
fit();
found = findModels();
