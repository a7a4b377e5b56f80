"use strict";
// Every text goes through textContent: nothing in a record is ever taken for markup.
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const MOST = 400;
const state = { suite: 0, backbone: "", rule: Object.keys(data.suites[0].rules)[0], method: "", find: "", all: false };
const sorts = new Map();

function make(tag, text, attributes = {}) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

// Sorting: numbers first, by the number that a text begins with; then words; what has no score comes last.
function number(text) {
  const found = /^[<≥]?\s*([-+]?[\d,]*\.?\d+(?:e-?\d+)?)/.exec(text);
  return found ? Number(found[1].replaceAll(",", "")) : NaN;
}
function order(a, b, sign) {
  const [x, y] = [number(a), number(b)];
  if (!Number.isNaN(x) && !Number.isNaN(y)) return sign * (x - y);
  if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
  return sign * a.localeCompare(b);
}

// rows: [{texts, cell(j) -> node or undefined}]; the first `words` columns are words.
function grid(id, label, header, rows, words, redraw) {
  const sort = sorts.get(id);
  if (sort && sort.column < header.length) {
    rows = rows.map((row, i) => [row, i]);
    rows.sort((a, b) => order(a[0].texts[sort.column], b[0].texts[sort.column], sort.sign) || a[1] - b[1]);
    rows = rows.map(([row]) => row);
  }
  const table = make("table");
  table.append(make("caption", label));
  const line = make("tr");
  header.forEach((name, j) => {
    const th = make("th", undefined, { scope: "col" });
    if (j < words) th.className = "w";
    if (sort && sort.column === j) th.setAttribute("aria-sort", sort.sign > 0 ? "ascending" : "descending");
    const button = make("button", name, { type: "button" });
    button.addEventListener("click", () => {
      const now = sorts.get(id);
      const first = j < words ? 1 : -1;
      sorts.set(id, now && now.column === j ? { column: j, sign: -now.sign } : { column: j, sign: first });
      redraw();
      find(id).querySelectorAll("thead button")[j].focus();
    });
    th.append(button);
    line.append(th);
  });
  const head = make("thead");
  head.append(line);
  const body = make("tbody");
  for (const row of rows) {
    const tr = make("tr");
    row.texts.forEach((text, j) => {
      const node = (row.cell && row.cell(j)) || text;
      const td = j === 0 ? make("th", undefined, { scope: "row" }) : make("td");
      if (j < words) td.classList.add("w");
      if (/^(—|not run|no score)$/.test(text)) td.classList.add("none");
      td.append(node);
      tr.append(td);
    });
    body.append(tr);
  }
  table.append(head, body);
  return table;
}

// A number that opens the runs behind it; `tasks`: those that it is of.
function opener(text, what, row, tasks) {
  const button = make("button", text, { type: "button", class: "cell" });
  if (/failed|diverged/.test(text)) button.classList.add("bad");
  button.setAttribute("aria-label", `${text}: runs of ${row.label}, ${what}`);
  button.addEventListener("click", () => detail(row, tasks));
  return button;
}
const all = (row) => row.runs.map((_, task) => task).filter((task) => row.runs[task] > 0);

const suite = () => data.suites[state.suite];
const several = () => new Set(suite().rows.map((row) => row.backbone)).size > 1;

function wanted(backbone, method, texts) {
  if (state.backbone !== "" && backbone !== state.backbone) return false;
  if (state.method !== "" && method !== state.method) return false;
  return !state.find || texts.join(" ").toLowerCase().includes(state.find.toLowerCase());
}

function scoreTable() {
  const now = suite();
  const names = several() ? ["method", "backbone"] : ["method"];
  const header = [...names, ...now.columns.map((column) => column[1])]; // scores first: a phone shows few columns
  if (now.average) header.push(now.average);
  header.push("adapter", "head", "trainable", "train s", "ms/step", "memory GB");
  const start = names.length;
  const rows = [];
  for (const row of now.rows) {
    const head = several() ? [row.label, data.names[row.backbone]] : [row.label];
    const texts = [...head, ...row.cells[state.rule], ...row.counts, ...row.costs];
    if (!wanted(data.names[row.backbone], data.names[row.method], texts)) continue;
    const cell = (j) => {
      const column = now.columns[j - start];
      if (column) return row.runs[column[0]] ? opener(texts[j], column[1], row, [column[0]]) : undefined;
      if ((names.length > j && j > 0) || texts[j] === "—") return undefined;
      const button = opener(texts[j], header[j], row, all(row));
      if (j > 0 && header[j] !== now.average) button.classList.add("quiet");
      return button;
    };
    rows.push({ texts, cell });
  }
  const shown = state.all ? rows : rows.slice(0, MOST);
  find("table").replaceChildren(grid("table", `Scores, ${state.rule}`, header, shown, names.length, scoreTable));
  find("legend").textContent = `${state.rule}: ${now.rules[state.rule]}`;
  find("count").textContent = `${shown.length} of ${now.rows.length} rows`;
  if (shown.length < rows.length) {
    const more = make("button", `Show all ${rows.length}`, { type: "button" });
    more.addEventListener("click", () => { state.all = true; scoreTable(); });
    find("count").append(" ", more);
  }
}

function sheetTables() {
  const place = find("sheets");
  const parts = [...(suite().sheets[state.rule] || []), ...suite().side];
  place.replaceChildren();
  parts.forEach((part, k) => {
    const box = make("div", undefined, { id: `sheet-${k}`, class: "scroll", tabindex: "0", role: "region" });
    box.setAttribute("aria-label", part.title);
    const byBackbone = part.header[0] === "backbone";
    const draw = () => {
      const rows = part.rows.map((texts) => ({ texts, cell: (j) => sheetCell(part, texts, j) })).filter(({ texts }) => {
        const label = texts[byBackbone ? 1 : 0];
        const method = label === state.method || label.startsWith(`${state.method} (`) ? state.method : label;
        return wanted(byBackbone ? texts[0] : state.backbone, method, texts);
      });
      box.replaceChildren(grid(box.id, part.title, part.header, rows, part.words, draw));
    };
    place.append(box);
    draw();
    if (part.legend) place.append(make("p", part.legend, { class: "hint" }));
  });
  if (!parts.length) place.append(make("p", "One task or one method: nothing to compare under this rule."));
}

function sheetCell(part, texts, j) {
  const byBackbone = part.header[0] === "backbone";
  if (j !== (byBackbone ? 1 : 0)) return undefined;
  const own = suite().rows.find((row) => row.label === texts[j] && (!byBackbone || data.names[row.backbone] === texts[0]));
  return own ? opener(texts[j], part.title, own, all(own)) : undefined;
}

function figures() {
  for (const figure of document.querySelectorAll("figure")) {
    const other = state.backbone !== "" && figure.dataset.backbone !== state.backbone;
    figure.hidden = figure.dataset.suite !== suite().suite || other;
  }
}

// Which task a record is of, and how many runs of it there are: rows hold their records side by side.
function recordsOf(row, task) {
  const first = row.first + row.runs.slice(0, task).reduce((sum, n) => sum + n, 0);
  return data.records.slice(first, first + row.runs[task]);
}

function link(row, task, record) {
  const parts = [suite().tasks[task], row.backbone, row.method].map((i) => data.paths[i]);
  const text = `runs/${[suite().tasks[task], row.backbone, row.method].map((i) => data.names[i]).join("/")}/${record[0]}.json`;
  return make("a", text, { href: `runs/${parts.join("/")}/${encodeURIComponent(record[0])}.json` });
}

function pairs(entries) {
  const list = make("dl");
  for (const [name, text] of entries) {
    if (text !== "" && text !== null && text !== undefined) list.append(make("dt", name), make("dd", String(text)));
  }
  return list;
}

function recordParts(row, task, record) {
  const [key, seed, status, groups, cost, scores, error] = record;
  const box = make("section");
  box.append(make("h3", `seed ${seed}: ${data.status[status]}`));
  const line = make("p", "Record: ");
  line.append(link(row, task, record));
  box.append(line);
  if (error >= 0) box.append(make("p", data.texts[error], { class: "bad" }));
  if (scores) {
    const rows = suite().scores[task].map((name, j) => ({
      texts: [name, ...data.rules.map((_, i) => (scores[i][j] === null ? "—" : scores[i][j].toFixed(2)))],
    }));
    const place = make("div", undefined, { class: "scroll" });
    const table = grid(`d-${key}`, "Scores × 100", ["score", ...data.rules], rows, 1, () => {});
    for (const button of table.querySelectorAll("thead button")) button.replaceWith(button.textContent);
    place.append(table);
    box.append(place);
  }
  box.append(pairs(data.cost.map((name, i) => [name, cost[i] === null ? "" : cost[i].toLocaleString("en")])));
  data.groups.forEach(([name, fields, values], g) => {
    const details = make("details");
    details.append(make("summary", name));
    details.append(pairs(fields.map((field, i) => [field, data.texts[values[groups[g]][i]]])));
    box.append(details);
  });
  return box;
}

function detail(row, tasks) {
  const names = tasks.map((task) => data.names[suite().tasks[task]]);
  const where = tasks.length > 1 ? `${tasks.length} tasks` : names[0];
  find("d-title").textContent = `${row.label} on ${where}, ${data.names[row.backbone]}`;
  const parts = tasks.map((task) => recordsOf(row, task).map((record) => () => recordParts(row, task, record)));
  find("d-body").replaceChildren();
  if (tasks.length === 1) {
    const nodes = parts[0].map((build) => build());
    nodes[0].querySelectorAll("details").forEach((details) => { details.open = true; });
    find("d-body").append(...nodes);
  }
  for (const [k, name] of tasks.length > 1 ? names.entries() : []) {
    const details = make("details");
    details.append(make("summary", `${name}: ${parts[k].length} runs`));
    details.addEventListener("toggle", () => details.append(...parts[k].splice(0).map((build) => build())));
    find("d-body").append(details);
  }
  find("detail").showModal();
  find("d-title").focus();
  find("detail").scrollTop = 0;
}

function lost() {
  const rows = [];
  for (const row of suite().rows) {
    row.runs.forEach((_, task) => {
      for (const record of recordsOf(row, task)) {
        if (record[2] === 0) continue;
        const names = [data.names[suite().tasks[task]], data.names[row.backbone], row.label, String(record[1])];
        const texts = [data.status[record[2]], ...names, record[6] >= 0 ? data.texts[record[6]] : "—", "record"];
        if (!wanted(data.names[row.backbone], data.names[row.method], texts)) continue;
        rows.push({ texts, cell: (j) => (j === 6 ? link(row, task, record) : undefined) });
      }
    });
  }
  const place = find("lost-table");
  if (!rows.length) return place.replaceChildren(make("p", "None among the rows chosen."));
  const box = make("div", undefined, { class: "scroll", tabindex: "0", role: "region", "aria-label": "Failed runs" });
  const header = ["status", "task", "backbone", "method", "seed", "error", "record"];
  const table = grid("lost-table", `${rows.length} runs`, header, rows.slice(0, MOST), 7, lost);
  table.className = "words";
  box.append(table);
  place.replaceChildren(box);
}

function options(id, entries, value) {
  find(id).replaceChildren(...entries.map(([key, text]) => make("option", text, { value: key })));
  find(id).value = value;
  if (find(id).selectedIndex < 0) find(id).selectedIndex = 0;
  return find(id).value;
}

function choices() {
  const unique = (name) => [...new Set(suite().rows.map((row) => data.names[row[name]]))].map((text) => [text, text]);
  state.backbone = options("f-backbone", [["", "all"], ...unique("backbone")], state.backbone);
  state.method = options("f-method", [["", "all"], ...unique("method")], state.method);
  state.rule = options("f-rule", Object.keys(suite().rules).map((rule) => [rule, rule]), state.rule);
}

function draw() {
  choices();
  scoreTable();
  sheetTables();
  figures();
  lost();
}

options("f-suite", data.suites.map((one, i) => [String(i), one.suite]), "0");
find("f-suite").addEventListener("change", (event) => { state.suite = Number(event.target.value); draw(); });
for (const name of ["backbone", "rule", "method"]) {
  find(`f-${name}`).addEventListener("change", (event) => { state[name] = event.target.value; draw(); });
}
find("f-find").addEventListener("input", (event) => { state.find = event.target.value; scoreTable(); sheetTables(); lost(); });
find("controls").addEventListener("submit", (event) => event.preventDefault());
for (const id of ["controls", "how"]) find(id).hidden = false;
draw();
