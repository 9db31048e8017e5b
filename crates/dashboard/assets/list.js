// The list of sandboxes, live and however long: rows that are in sight exist, the others are room above and below.
const frame = document.getElementById("window");
const body = frame.querySelector("tbody");
const table = frame.querySelector("table");
const blank = document.getElementById("blank").content.firstElementChild;
const bulk = document.getElementById("bulk");
const picked = document.getElementById("picked");
const all = document.getElementById("all");
const EVERY_MS = 2000;
const AFTER_FAILURE_MS = 10000;
const AROUND = 10;

let rows = [];
let tag = null;
let height = 0;
const chosen = new Set();
const shown = new Map();

const span = (seconds) => {
  const s = Math.max(0, Math.floor(seconds));
  const d = Math.floor(s / 86400), h = Math.floor(s / 3600) % 24, m = Math.floor(s / 60) % 60;
  if (d) return `${d} d ${h} h`;
  if (h) return `${h} h ${m} min`;
  if (m >= 10) return `${m} min`;
  return m ? `${m} min ${s % 60} s` : `${s} s`;
};

const points = (values) => {
  const last = Math.max(values.length - 1, 1);
  return values.map((v, at) => `${((at * 240) / last).toFixed(1)},${((1 - Math.min(Math.max(v / 100, 0), 1)) * 46 + 1).toFixed(1)}`).join(" ");
};

const set = (node, text) => {
  if (node.textContent !== text) node.textContent = text;
};

function fill(tr, row, index) {
  const cells = [...tr.children];
  tr.setAttribute("aria-rowindex", index + 2);
  if (cells[0].classList.contains("pick")) {
    const box = cells.shift().firstElementChild;
    box.value = row.id;
    box.checked = chosen.has(row.id);
    box.setAttribute("aria-label", `Select ${row.id}`);
  }
  const [id, state, template, age, left, cpu, memory, labels] = cells;
  const link = id.firstElementChild;
  set(link, row.id);
  link.href = `/ui/sandboxes/${encodeURIComponent(row.id)}`;
  const mark = state.firstElementChild;
  set(mark, row.state);
  mark.className = row.state === "running" ? "state running" : "state paused";
  set(template, row.template);
  const now = Date.now() / 1000;
  set(age, span(now - row.started));
  set(left, row.state === "running" ? span(row.ends - now) : "–");
  left.title = `then: ${row.then}`;
  const line = cpu.querySelector("polyline");
  line.setAttribute("points", points(row.cpu));
  const newest = row.cpu.at(-1);
  cpu.firstElementChild.setAttribute("aria-label", newest === undefined ? "CPU: not known" : `CPU ${Math.round(newest)} %`);
  set(memory, row.memory === null ? "–" : `${Math.round(row.memory)} %`);
  const texts = row.metadata.map(([key, value]) => `${key}=${value}`);
  if (labels.textContent !== texts.join("") || labels.childElementCount !== texts.length) {
    labels.replaceChildren(...texts.map((text) => {
      const label = document.createElement("span");
      label.className = "label";
      label.textContent = text;
      return label;
    }));
  }
}

function gap(name) {
  const tr = document.createElement("tr");
  tr.className = `gap ${name}`;
  tr.setAttribute("aria-hidden", "true");
  const td = document.createElement("td");
  td.colSpan = blank.childElementCount;
  tr.append(td);
  return tr;
}
const above = gap("above"), below = gap("below");

function draw() {
  const room = frame.clientHeight || 600;
  const each = height || 44;
  const first = Math.max(0, Math.floor(frame.scrollTop / each) - AROUND);
  const last = Math.min(rows.length, Math.ceil((frame.scrollTop + room) / each) + AROUND);
  const wanted = rows.slice(first, last);
  const ids = new Set(wanted.map((row) => row.id));
  for (const [id, tr] of shown) {
    // The row with the focus stays: a keyboard must not lose its place.
    if (!ids.has(id) && !tr.contains(document.activeElement)) {
      tr.remove();
      shown.delete(id);
    }
  }
  if (body.firstElementChild !== above) body.replaceChildren(above, below);
  above.firstElementChild.style.height = `${first * each}px`;
  below.firstElementChild.style.height = `${(rows.length - last) * each}px`;
  above.hidden = first === 0;
  below.hidden = last === rows.length;
  let before = above;
  wanted.forEach((row, at) => {
    let tr = shown.get(row.id);
    if (!tr) {
      tr = blank.cloneNode(true);
      shown.set(row.id, tr);
    }
    fill(tr, row, first + at);
    if (before.nextElementSibling !== tr) before.after(tr);
    before = tr;
  });
  const sample = shown.values().next().value;
  const measured = sample?.getBoundingClientRect().height ?? 0;
  if (measured && Math.abs(measured - height) > 0.5) {
    height = measured;
    requestAnimationFrame(draw);
  }
}

function count() {
  if (!picked) return;
  const ids = new Set(rows.map((row) => row.id));
  for (const id of chosen) if (!ids.has(id)) chosen.delete(id);
  picked.textContent = `${chosen.size} selected`;
  all.hidden = rows.length === 0;
}

async function turn() {
  let wait = EVERY_MS;
  if (!document.hidden) {
    try {
      const answer = await fetch(frame.dataset.rows, {
        headers: tag ? { "if-none-match": tag } : {},
        credentials: "same-origin",
        redirect: "error",
        signal: AbortSignal.timeout(AFTER_FAILURE_MS),
      });
      if (answer.status === 401) return location.reload();
      if (answer.status === 200) {
        const fresh = await answer.json();
        tag = answer.headers.get("etag");
        rows = fresh.rows;
        document.getElementById("running").textContent = fresh.running;
        document.getElementById("paused").textContent = fresh.paused;
        set(document.getElementById("room"), fresh.room ?? "");
        document.getElementById("none").hidden = rows.length > 0;
        document.getElementById("pages")?.remove();
        table.setAttribute("aria-rowcount", rows.length + 1);
        count();
      }
      if (tag) draw();
    } catch {
      wait = AFTER_FAILURE_MS;
    }
  }
  setTimeout(turn, wait);
}

body.addEventListener("change", (event) => {
  if (event.target.name !== "id") return;
  if (event.target.checked) chosen.add(event.target.value);
  else chosen.delete(event.target.value);
  count();
});
all?.addEventListener("click", () => {
  const whole = chosen.size < rows.length;
  chosen.clear();
  if (whole) rows.forEach((row) => chosen.add(row.id));
  count();
  draw();
});
bulk.addEventListener("submit", () => {
  bulk.querySelectorAll("input[data-unseen]").forEach((input) => input.remove());
  const here = new Set([...bulk.querySelectorAll("input[name=id]:checked")].map((input) => input.value));
  for (const id of chosen) {
    if (here.has(id)) continue;
    const input = document.createElement("input");
    input.type = "hidden";
    input.name = "id";
    input.value = id;
    input.dataset.unseen = "";
    bulk.append(input);
  }
});
frame.addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
window.addEventListener("resize", () => {
  height = 0;
  requestAnimationFrame(draw);
});
turn();
