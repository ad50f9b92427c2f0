// Shows what the model answers: in words, as a picture or recording, or as a table where it answers several things.
import { feedbackOn } from "./feedback.js";
import { make, say, share, word } from "./words.js";

// How base64 of a file begins, and what that file is.
const FILES = {
  iVBORw0KGgo: "image/png", "/9j/": "image/jpeg", R0lGOD: "image/gif", UklGR: "audio/wav", ZkxhQ: "audio/flac",
  T2dnUw: "audio/ogg", SUQz: "audio/mpeg",
};

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const words = (children) => (children.length ? children : [say(make("span", "muted"), "none")]);

function media(value) {
  const [, given] = /^data:((?:image|audio)\/[\w.+-]+);base64,/.exec(value) ?? [];
  const begins = Object.keys(FILES).find((letters) => value.length > 100 && value.startsWith(letters));
  const found = begins && /^[\w+/=\s]+$/.test(value) ? FILES[begins] : null;
  const kind = given ?? found;
  return kind ? [kind, given ? value : `data:${kind};base64,${value}`] : null;
}

// One value, as an element.
function shown(value) {
  if (value === null || value === undefined) return say(make("span", "muted"), "none");
  if (Array.isArray(value)) {
    const parts = value.flatMap((part, n) => (n ? [", ", shown(part)] : [shown(part)]));
    return make("span", "", ...words(parts));
  }
  if (isObject(value)) {
    const parts = Object.entries(value).flatMap(([name, part], n) => [n ? "; " : "", `${name}: `, shown(part)]);
    return make("span", "", ...words(parts));
  }
  if (typeof value === "string") {
    const file = media(value);
    if (file) {
      const node = make(file[0].startsWith("image/") ? "img" : "audio");
      node.src = file[1];
      if (node.tagName === "IMG") return say(node, "answer", {}, "alt");
      node.controls = true;
      return say(node, "answer", {}, "aria-label");
    }
  }
  return make("span", "", String(value));
}

// What was answered, or that it was not probable enough.
function answered({ prediction, abstained }) {
  return abstained === true && prediction === null ? say(make("span", "muted"), "withheld") : shown(prediction);
}

function figure(probability) {
  const cell = make("td", "figure");
  if (typeof probability !== "number") return cell;
  const filled = make("i");
  filled.style.width = `${100 * probability}%`;
  const bar = make("span", "bar", filled);
  bar.setAttribute("aria-hidden", "true");
  cell.append(say(make("span", "share"), "{share}", { share: share(probability) }), bar);
  return cell;
}

// A table: heads are keys of words. Where no row has a probability there is no column of them.
function table(heads, rows, note) {
  if (!rows.some((row) => row.querySelector(".share"))) {
    heads = heads.filter((key) => key !== "probability");
    rows.forEach((row) => row.querySelector(".figure").remove());
  }
  const head = make("tr", "", ...heads.map((key) => {
    const cell = say(make("th", key === "probability" ? "figure" : ""), key);
    cell.scope = "col";
    return cell;
  }));
  const node = make("table", "", make("thead", "", head), make("tbody", "", ...rows));
  if (note) node.prepend(say(make("caption"), note));
  return node;
}

function rowHead(...children) {
  const cell = make("th", "", ...children);
  cell.scope = "row";
  return cell;
}

const names = (subset) => subset.flatMap((name, n) => [n ? " + " : "", say(make("span"), name)]);

function bestTable(best, title, values) {
  if (!best || best.length < 2) return [];
  const rows = best.map((one) => make("tr", "", rowHead(shown(one.answer)), figure(one.probability)));
  return [say(make("h3"), title, values), table(["answer", "probability"], rows)];
}

// The answer to all inputs; of several answers at once (`outputs`) each with what is known of it.
function whole({ prediction, probability, abstained, best, outputs }) {
  const nodes = [];
  const parts = Object.entries(outputs ?? {});
  if (isObject(prediction)) {
    const all = parts.length ? parts : Object.entries(prediction).map(([name, value]) => [name, { prediction: value }]);
    const rows = all.map(([name, part]) => make("tr", "", rowHead(name), make("td", "", answered(part)), figure(part.probability)));
    nodes.push(table(["part", "answer", "probability"], rows));
  } else if (abstained === true) {
    nodes.push(say(make("p", "said"), "abstained"));
  } else {
    const node = make("div", "said", shown(prediction));
    node.classList.toggle("long", typeof prediction === "string" && prediction.length > 60);
    nodes.push(node);
  }
  if (typeof probability === "number") nodes.push(say(make("p"), "right", { share: share(probability) }));
  return [...nodes, ...bestTable(best, "best"), ...parts.flatMap(([name, part]) => bestTable(part.best, "of", { name }))];
}

// In one line, of a recording that still runs: nothing of what cannot be said in words.
export function sayBriefly(node, { prediction, probability, abstained }) {
  const said = isObject(prediction) ? Object.values(prediction).join(", ") : String(prediction);
  const isLong = said.length > 200; // a file
  if (prediction === null || abstained === true || isLong) return node.replaceChildren();
  if (typeof probability === "number") say(node, "soFarSure", { answer: said, share: share(probability) });
  else say(node, "soFar", { answer: said });
}

// `answers` are those to `subsets` (lists of inputs), the first one to all inputs.
export function showAnswer(section, subsets, answers) {
  const [all] = answers;
  const nodes = [say(make("h2"), "answer"), ...whole(all)];
  if (all.answer_id) nodes.push(feedbackOn(all.answer_id));
  if (subsets.length > 1) {
    const full = JSON.stringify(all.prediction);
    const rows = subsets.map((subset, n) => {
      const { prediction, probability } = answers[n];
      const same = prediction !== null && JSON.stringify(prediction) === full ? "same" : "";
      const given = make("span", "given", ...names(subset));
      return make("tr", same, rowHead(given), make("td", "", answered(answers[n])), figure(probability));
    });
    nodes.push(say(make("h3"), "subsets"), table(["inputs", "answer", "probability"], rows, "subsetsNote"));
  }
  nodes.push(originOf(make("p", "muted origin"), all.model_version, all.dataset_fingerprint));
  section.classList.remove("empty");
  section.replaceChildren(...nodes);
}

export function showNoAnswer(section) {
  section.classList.add("empty");
  section.replaceChildren(say(make("p"), "first"));
}

// The model that answers.
export function originOf(node, version, dataset) {
  return say(node, version ? "version" : "noVersion", { version, dataset: dataset ?? word("none") });
}
