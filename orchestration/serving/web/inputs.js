// The inputs of a model: a card each, by the type of its files. What is given is a text or a file (`value`).
import { sayBriefly } from "./answer.js";
import { hasDevices, photograph, record } from "./devices.js";
import { streamed } from "./streaming.js";
import { bytes, make, say } from "./words.js";

const NO_ACCESS = { NotAllowedError: "denied", SecurityError: "denied", NotFoundError: "missing", OverconstrainedError: "missing" };

class Input {
  constructor(name, { views = [] }, limits) {
    this.name = name;
    this.limits = limits;
    this.view = null; // of a model that knows its inputs by view: which one is given here
    if (views.length) {
      this.view = make("select");
      this.view.setAttribute("aria-label", name);
      this.view.append(...views.map((view) => new Option(view)));
    }
    this.problem = make("p", "problem");
    this.problem.setAttribute("role", "alert");
    this.problem.hidden = true;
    this.card = make("div", "card");
    this.card.dataset.input = name;
    this.beside = async () => ({}); // what the other inputs and columns have, as a request says it
  }

  complain(key, values) {
    this.problem.hidden = !key;
    if (key) say(this.problem, key, values);
  }
}

class TextInput extends Input {
  constructor(name, about, limits) {
    super(name, about, limits);
    this.area = say(make("textarea"), "writing", {}, "placeholder");
    this.area.id = `input-${name}`;
    this.area.oninput = () => this.complain();
    const label = say(make("label"), name);
    label.htmlFor = this.area.id;
    this.card.append(label, ...(this.view ? [this.view] : []), this.area, this.problem);
  }

  get value() {
    return this.area.value.trim() ? this.area.value : null;
  }

  async take(file) {
    this.area.value = await file.text();
    this.complain();
  }
}

// A column of the samples: a line beside the inputs, which is asked with each of their subsets.
export class ColumnInput extends Input {
  constructor(name) {
    super(name, {}, {});
    this.field = Object.assign(make("input"), { type: "text", id: `column-${name}` });
    const label = make("label", "", name); // a name of the project's own, in every language
    label.htmlFor = this.field.id;
    this.card.append(label, this.field);
  }

  get value() {
    return this.field.value.trim() || null;
  }
}

class FileInput extends Input {
  constructor(name, about, limits) {
    super(name, about, limits);
    const { type, suffixes } = about;
    this.value = null;
    const chooser = Object.assign(make("input"), { type: "file", id: `input-${name}`, accept: [type, ...suffixes].join(",") });
    chooser.onchange = () => {
      if (chooser.files[0]) this.take(chooser.files[0]);
      chooser.value = ""; // the same file may be chosen again
    };
    const button = say(make("label", "button"), "file");
    button.htmlFor = chooser.id;
    const title = say(make("h2"), name);
    title.id = `title-${name}`;
    this.card.setAttribute("role", "group");
    this.card.setAttribute("aria-labelledby", title.id);
    this.buttons = make("div", "row", ...(this.view ? [this.view] : []), chooser, button);
    this.preview = make("div", "preview");
    this.card.append(title, this.buttons, this.preview, this.problem);
  }

  // A button for a device. `use` shows in the button how it goes, and gives a file, or null.
  addDevice(key, use) {
    const button = say(make("button"), key);
    button.type = "button";
    button.disabled = !hasDevices;
    button.onclick = async () => {
      this.complain();
      try {
        await use(button);
      } catch (error) {
        this.complain(NO_ACCESS[error.name] ?? "device", { why: error.message });
      }
    };
    this.buttons.append(button);
    if (!hasDevices) this.card.append(say(make("p", "muted"), "insecure"));
  }

  take(file, words) {
    const most = this.limits.max_bytes ?? Infinity;
    const name = file.name ?? "";
    if (!file.size) return this.complain("empty", { name });
    if (file.size > most) return this.complain("large", { name, size: bytes(file.size), most: bytes(most) });
    this.complain();
    this.forget();
    this.value = file;
    this.url = URL.createObjectURL(file);
    const label = make("span", "name", name);
    if (words) say(label, words);
    const remove = say(make("button"), "remove");
    remove.type = "button";
    remove.onclick = () => this.forget();
    const shown = this.show(this.url);
    if (shown) say(shown, "preview", {}, shown.tagName === "IMG" ? "alt" : "aria-label");
    this.preview.append(...(shown ? [shown] : []), make("div", "row", label, remove));
  }

  forget() {
    if (this.url) URL.revokeObjectURL(this.url);
    this.value = this.url = null;
    this.preview.replaceChildren();
  }

  show() {
    return null;
  }
}

class PictureInput extends FileInput {
  constructor(...about) {
    super(...about);
    this.addDevice("camera", async () => {
      const picture = await photograph();
      if (picture) this.take(picture, "taken");
    });
  }

  show(url) {
    const picture = Object.assign(make("img"), { src: url });
    picture.onerror = () => picture.remove(); // a format that browsers do not show
    return picture;
  }
}

class RecordingInput extends FileInput {
  constructor(...about) {
    super(...about);
    this.addDevice("record", async (button) => {
      if (this.stop) return this.end(button);
      button.disabled = true;
      try {
        const most = this.limits.max_seconds ?? Infinity;
        const [time, soFar, row] = [make("span"), make("p", "muted"), await this.beside()];
        soFar.setAttribute("role", "status");
        this.stop = await record((seconds, samples, rate) => {
          time.textContent = `${seconds.toFixed(1)} s`;
          if (!this.view) { // of a model that knows its inputs by view, this is one of several
            this.stream ??= streamed(this.name, rate, row, (answer) => sayBriefly(soFar, answer));
            this.stream.send(samples);
          }
          if (seconds >= most - 0.5) this.end(button);
        });
        this.forget();
        button.setAttribute("aria-pressed", "true");
        say(button, "stop");
        this.preview.append(time, soFar);
      } finally {
        button.disabled = false;
      }
    });
  }

  async end(button) {
    const stop = this.stop;
    if (!stop) return;
    this.stop = null;
    this.stream?.close();
    this.stream = null;
    button.removeAttribute("aria-pressed");
    say(button, "record");
    this.preview.replaceChildren();
    this.take(await stop(), "recorded");
  }

  show(url) {
    return Object.assign(make("audio"), { src: url, controls: true });
  }
}

const KINDS = { "text/plain": TextInput, "image/*": PictureInput, "audio/*": RecordingInput };

export function makeInput(name, about, limits) {
  const { type = "text/plain", suffixes = [], views } = about;
  const kind = KINDS[type] ?? FileInput;
  const input = new kind(name, { type, suffixes, views }, limits);
  input.fits = (file) => {
    const [main, sub] = type.split("/");
    const typed = sub === "*" ? main !== "*" && file.type.startsWith(`${main}/`) : file.type === type;
    return typed || suffixes.some((suffix) => file.name.toLowerCase().endsWith(suffix));
  };
  return input;
}
