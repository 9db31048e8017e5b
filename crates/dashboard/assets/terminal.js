// A terminal whose screen is kept by the server: rows come as texts with words for their looks, keys go as a terminal sends them.
const screen = document.getElementById("screen");
const rows = document.getElementById("rows");
const keys = document.getElementById("keys");
const said = document.getElementById("said");
const title = document.getElementById("title");

const PLAIN = {
  Enter: "\r", Backspace: "\x7f", Tab: "\t", Escape: "\x1b", Delete: "\x1b[3~", Insert: "\x1b[2~", PageUp: "\x1b[5~", PageDown: "\x1b[6~",
  F1: "\x1bOP", F2: "\x1bOQ", F3: "\x1bOR", F4: "\x1bOS", F5: "\x1b[15~", F6: "\x1b[17~", F7: "\x1b[18~", F8: "\x1b[19~",
  F9: "\x1b[20~", F10: "\x1b[21~", F11: "\x1b[23~", F12: "\x1b[24~",
};
const CURSOR = { ArrowUp: "A", ArrowDown: "B", ArrowRight: "C", ArrowLeft: "D", Home: "H", End: "F" };

let socket = null;
let state = { application_cursor: false, bracketed_paste: false, back: 0, rows: 24 };
let speak = 0;

function size() {
  const probe = document.createElement("span");
  probe.textContent = "MMMMMMMMMM";
  rows.append(probe);
  const box = probe.getBoundingClientRect();
  probe.remove();
  const wide = box.width / 10 || 8;
  const style = getComputedStyle(screen);
  const inner = screen.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  const high = screen.clientHeight - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom);
  return { cols: Math.max(2, Math.floor(inner / wide)), rows: Math.max(2, Math.floor(high / (box.height || 18))) };
}

const send = (message) => {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
};

function draw(show) {
  while (rows.childElementCount > show.rows) rows.lastElementChild.remove();
  while (rows.childElementCount < show.rows) {
    const row = document.createElement("div");
    row.className = "line";
    rows.append(row);
  }
  let last = "";
  for (const [at, runs] of Object.entries(show.changed)) {
    rows.children[at].replaceChildren(...runs.map(([text, looks]) => {
      const span = document.createElement("span");
      span.textContent = text;
      if (looks) span.className = looks;
      return span;
    }));
    last = rows.children[at].textContent.trim() || last;
  }
  if (last) {
    clearTimeout(speak);
    speak = setTimeout(() => { said.textContent = last; }, 500);
  }
  state = show;
  title.textContent = show.title;
}

function say(text) {
  const line = document.createElement("div");
  line.className = "line ended";
  line.textContent = text;
  rows.append(line);
  said.textContent = text;
}

function open() {
  const url = new URL(screen.dataset.socket, location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  socket = new WebSocket(url);
  let ended = false;
  socket.addEventListener("open", () => send({ type: "hello", token: screen.dataset.token, ...size() }));
  socket.addEventListener("message", (event) => {
    const message = JSON.parse(event.data);
    if ("end" in message) {
      ended = true;
      say(`${message.end ?? "ended"}. Press Enter for a new shell.`);
    } else draw(message);
  });
  socket.addEventListener("close", () => {
    if (!ended) say("The connection is gone. Press Enter for a new shell.");
    socket = null;
  });
}

const type = (text) => send({ type: "keys", text });

keys?.addEventListener("keydown", (event) => {
  if (event.isComposing || event.metaKey) return;
  if (event.key === "Escape" && event.shiftKey) {
    keys.blur();
    return;
  }
  if (!socket && event.key === "Enter") {
    event.preventDefault();
    rows.replaceChildren();
    open();
    return;
  }
  if (event.shiftKey && (event.key === "PageUp" || event.key === "PageDown")) {
    const step = Math.max(1, state.rows - 1);
    send({ type: "scroll", back: Math.max(0, state.back + (event.key === "PageUp" ? step : -step)) });
    event.preventDefault();
    return;
  }
  // Copy and paste are the browser's.
  if (event.ctrlKey && event.shiftKey) return;
  let text = null;
  if (event.key in CURSOR) text = (state.application_cursor ? "\x1bO" : "\x1b[") + CURSOR[event.key];
  else if (event.key === "Tab" && event.shiftKey) text = "\x1b[Z";
  else if (event.key in PLAIN) text = PLAIN[event.key];
  else if (event.ctrlKey && event.key.length === 1) {
    const code = event.key.toUpperCase().charCodeAt(0);
    if (event.key === " ") text = "\0";
    else if (code >= 64 && code < 96) text = String.fromCharCode(code & 31);
  } else if (event.altKey && event.key.length === 1) text = `\x1b${event.key}`;
  if (text === null) return;
  event.preventDefault();
  type(text);
});
// What is written, composed or pasted comes as text.
keys?.addEventListener("input", () => {
  const text = keys.value;
  keys.value = "";
  if (text) type(text.replace(/\r?\n/g, "\r"));
});
keys?.addEventListener("paste", (event) => {
  event.preventDefault();
  const text = event.clipboardData.getData("text/plain").replace(/\r?\n/g, "\r").slice(0, 16384);
  type(state.bracketed_paste ? `\x1b[200~${text.replaceAll("\x1b", "")}\x1b[201~` : text);
});
screen?.addEventListener("mouseup", () => {
  if (!getSelection().toString()) keys.focus({ preventScroll: true });
});
screen?.addEventListener("wheel", (event) => {
  const back = Math.max(0, state.back - Math.sign(event.deltaY) * 3);
  if (back !== state.back) send({ type: "scroll", back });
}, { passive: true });
if (screen) {
  let timer = 0;
  new ResizeObserver(() => {
    clearTimeout(timer);
    timer = setTimeout(() => send({ type: "size", ...size() }), 200);
  }).observe(screen);
  open();
  keys.focus({ preventScroll: true });
}
