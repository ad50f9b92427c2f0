// The page: what the model takes (GET about), what a person gives, and the answers to every subset of it
// (POST invocations, one row each).
import { originOf, showAnswer, showNoAnswer } from "./answer.js";
import { ColumnInput, makeInput } from "./inputs.js";
import { LANGUAGES, bytes, languageName, make, say, speak, spoken } from "./words.js";

const element = (id) => document.getElementById(id);
const [form, answer, problem, button] = ["form", "answer", "problem", "ask"].map(element);
let inputs = [];
let columns = [];
let limits = {};

// A problem in words; `detail` is what the server said, in its own words.
function complain(key, values, detail) {
  problem.hidden = key === undefined;
  if (key === undefined) return;
  problem.replaceChildren(say(make("span"), key, values));
  if (detail) problem.append(Object.assign(make("span", "", detail), { lang: "en" }));
}

function showLanguages() {
  const buttons = LANGUAGES.map((code) => {
    const chosen = Object.assign(make("button", "", languageName(code)), { type: "button", lang: code });
    chosen.setAttribute("aria-pressed", code === spoken());
    chosen.onclick = () => {
      buttons.forEach((other) => other.setAttribute("aria-pressed", other === chosen));
      speak(code);
    };
    return chosen;
  });
  say(element("languages"), "languages", {}, "aria-label").append(...buttons);
}

// All subsets of the names, the largest first.
function subsetsOf(names) {
  const all = names.reduce((some, name) => [...some, ...some.map((subset) => [...subset, name])], [[]]);
  return all.filter((subset) => subset.length).sort((a, b) => b.length - a.length);
}

// A text as it is, a file as a data: URL.
function encoded(value) {
  if (typeof value === "string") return value;
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(value);
  });
}

// Bodies of requests, as few as the server's limit allows; null where not even one row fits.
function bodiesOf(rows) {
  const bodies = [];
  const room = (limits.max_body_bytes ?? Infinity) - 100;
  let part = [];
  let size = 0;
  for (const row of rows) {
    const text = JSON.stringify(row);
    const length = new Blob([text]).size + 1;
    if (length > room) return null;
    if (part.length && size + length > room) {
      bodies.push(part);
      [part, size] = [[], 0];
    }
    part.push(text);
    size += length;
  }
  return [...bodies, part].map((texts) => `{"dataframe_records": [${texts.join(",")}]}`);
}

class Refusal extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function post(body) {
  const request = { method: "POST", headers: { "Content-Type": "application/json" }, body };
  const response = await fetch("invocations", request).catch(() => {
    throw new Refusal(0, "");
  });
  const text = await response.text();
  if (response.ok) return JSON.parse(text).predictions;
  let said = text;
  try {
    said = JSON.parse(text).message ?? text;
  } catch { /* not the model's server: its words as they are */ }
  throw new Refusal(response.status, said.replace(/^row \d+(, column)?:? /, ""));
}

// Of inputs: name -> what a request says.
async function valuesOf(given) {
  const values = new Map();
  for (const { name, value, view } of given) {
    const content = await encoded(value);
    values.set(name, view ? { [view.value]: content } : content);
  }
  return values;
}

const namedColumns = () => columns.map((column) => [column.name, column.value]).filter(([, value]) => value !== null);

async function ask() {
  const given = inputs.filter((input) => input.value !== null);
  complain();
  if (!given.length) return complain("nothing");
  button.disabled = true;
  say(button, "asking");
  answer.setAttribute("aria-busy", "true");
  try {
    const values = await valuesOf(given);
    const subsets = subsetsOf([...values.keys()]);
    const named = namedColumns();
    const bodies = bodiesOf(subsets.map((subset) => Object.fromEntries([...named, ...subset.map((name) => [name, values.get(name)])])));
    if (!bodies) return complain("together", { most: bytes(limits.max_body_bytes) });
    const answers = [];
    for (const body of bodies) answers.push(...(await post(body)));
    showAnswer(answer, subsets, answers);
    if (matchMedia("(max-width: 56rem)").matches) answer.scrollIntoView({ block: "nearest" });
  } catch (error) {
    showNoAnswer(answer); // the one before is not to these inputs
    if (!(error instanceof Refusal)) throw error;
    complain([0, 400, 413, 500, 503].includes(error.status) ? error.status : "refused", { status: error.status }, error.message);
  } finally {
    button.disabled = false;
    say(button, "ask");
    answer.setAttribute("aria-busy", "false");
  }
}

// Files that were dropped or pasted: to the input they were dropped on, else to the first that takes such files.
function takeFiles(files, card) {
  complain();
  for (const file of files) {
    const input = inputs.find((one) => one.card === card) ?? inputs.find((one) => one.fits(file));
    if (input) input.take(file);
    else complain("type", { name: file.name });
  }
}

function watchFiles() {
  const over = (card) => inputs.forEach((input) => input.card.classList.toggle("over", input.card === card));
  const cardAt = (event) => event.target.closest?.(".card") ?? null;
  addEventListener("dragover", (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    over(cardAt(event));
  });
  addEventListener("dragleave", (event) => event.relatedTarget || over(null));
  addEventListener("drop", (event) => {
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    over(null);
    takeFiles(event.dataTransfer.files, cardAt(event));
  });
  addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    takeFiles(event.clipboardData.files, null);
  });
}

async function start() {
  showLanguages();
  say(element("lead"), "lead");
  say(button, "ask");
  showNoAnswer(answer);
  speak();
  form.onsubmit = (event) => {
    event.preventDefault();
    ask();
  };
  form.onkeydown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !button.disabled) ask();
  };
  let about;
  try {
    about = await (await fetch("about")).json();
  } catch {
    return complain(0);
  }
  limits = about.limits;
  const project = about.project ?? "Triptych";
  element("project").textContent = project;
  document.title = project === "Triptych" ? project : `${project} · Triptych`;
  originOf(element("origin"), about.version, about.dataset_fingerprint);
  inputs = Object.entries(about.inputs).map(([name, one]) => makeInput(name, one, limits));
  for (const input of inputs) {
    input.beside = async () => {
      const others = inputs.filter((other) => other !== input && other.value !== null);
      return Object.fromEntries([...namedColumns(), ...(await valuesOf(others))]);
    };
  }
  columns = (about.columns ?? []).map((name) => new ColumnInput(name));
  element("inputs").append(...[...inputs, ...columns].map((input) => input.card));
  watchFiles();
}

start();
