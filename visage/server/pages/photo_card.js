// One photo: the picture with a box around each face, and a row for each face that opens into its
// distribution and its score map.

import { curve, intervalBar, words } from "./distribution.js";
import { fixed, html, percent, read, sentence } from "./elements.js";
import { scoreMap } from "./score_map.js";

// A server that is busy says when to come back; after so many times its sentence is shown
const TRIES = 4;
const BUSY = [429, 503];
// The same photo may be accepted later: no answer, a late one, a busy or a failed server
const WORTH_ANOTHER_TRY = [0, 408, 429, 500, 502, 503, 504];
const CURVE_PX = { least: 280, most: 560 };

let count = 0;

export class PhotoCard {
  /** `file` -> a card; `model` is a promise of GET /model, `announce` says what has changed,
   * `remove(card)` takes the card away, `opened`: its first face is shown at once. */
  constructor(file, { model, announce, remove, opened }) {
    count += 1;
    this.name = file.name || `photo ${count}`;
    this.file = file;
    this.id = `photo-${count}`;
    this.model = model;
    this.announce = announce;
    this.opened = opened;
    this.gone = new AbortController();
    this.address = URL.createObjectURL(file);
    this.explained = null;
    this.build(remove);
  }

  build(remove) {
    this.image = html("img", { src: this.address, alt: `${this.name}`, className: "picture" });
    this.shown = new Promise((resolve) => {
      this.image.addEventListener("load", () => resolve(true), { once: true });
      this.image.addEventListener("error", () => resolve(false), { once: true });
    });
    this.boxes = html("div", { className: "boxes" });
    this.frame = html("div", { className: "frame" }, this.image, this.boxes);
    this.state = html("p", { className: "state busy" }, "Looking for faces …");
    this.faces = html("ol", { className: "faces" });
    this.title = html("h3", { id: `${this.id}-title`, tabIndex: -1, title: this.name }, this.name);
    this.size = html("span", { className: "small" });
    this.tools = html("div", { className: "card-tools" });
    const close = html(
      "button",
      { type: "button", className: "icon-button", onclick: () => remove(this) },
      "×",
    );
    close.setAttribute("aria-label", `Remove ${this.name}`);

    this.element = html(
      "article",
      { className: "card", attributes: { "aria-labelledby": `${this.id}-title` } },
      html("header", { className: "card-head" }, html("div", {}, this.title, this.size), close),
      html(
        "div",
        { className: "card-body" },
        html("div", { className: "photo" }, this.frame),
        html("div", { className: "found" }, this.state, this.faces, this.tools),
      ),
    );
  }

  focus() {
    this.title.focus();
  }

  close() {
    this.gone.abort();
    URL.revokeObjectURL(this.address);
    this.element.remove();
  }

  /** Asks the server and shows what it says. */
  async predict() {
    this.state.className = "state busy";
    this.state.textContent = "Looking for faces …";
    try {
      this.show(await this.ask("predict?all_faces=true&distribution=true"));
    } catch (error) {
      if (!this.gone.signal.aborted) this.fail(error);
    }
  }

  async ask(address) {
    const form = new FormData();
    form.append("photo", this.file, this.name);
    for (let tries = 1; ; tries += 1) {
      try {
        const options = { method: "POST", body: form, signal: this.gone.signal };
        const answer = await read(address, options);
        return answer.predictions[0];
      } catch (error) {
        if (!BUSY.includes(error.status) || tries === TRIES || this.gone.signal.aborted) throw error;
        await new Promise((resolve) => setTimeout(resolve, 1000 * (error.retryAfter ?? 1)));
      }
    }
  }

  fail(error) {
    this.element.classList.add("failed");
    this.state.className = "state error";
    // Each request holds one photo, so its number says nothing
    const reason = sentence(error.message.replace(/^item 0: /, ""));
    this.state.replaceChildren(html("span", {}, reason));
    if (WORTH_ANOTHER_TRY.includes(error.status)) this.state.append(this.again());
    this.announce(`${this.name}: ${reason}`);
    this.hideBroken();
  }

  again() {
    const button = html("button", { type: "button", className: "button quiet" }, "Try again");
    button.addEventListener("click", () => {
      this.element.classList.remove("failed");
      this.title.focus();
      this.predict();
    });
    return button;
  }

  async hideBroken() {
    if (!(await this.shown)) this.frame.hidden = true;
  }

  show(document) {
    this.document = document;
    const { width, height } = document.photo;
    this.size.textContent = `${width} × ${height} px`;
    this.frame.style.aspectRatio = `${width} / ${height}`;
    this.frame.style.setProperty("--ratio", width / height);
    this.showUndecoded();

    if (document.faces.length === 0) {
      this.state.className = "state";
      this.state.textContent = sentence(document.reason ?? "no face found");
      this.announce(`${this.name}: ${this.state.textContent}`);
      return;
    }

    this.state.className = "hidden";
    this.state.textContent = "";
    this.rows = document.faces.map((face, index) => this.addFace(face, index));
    this.addTools();
    this.announce(this.summary());
    if (this.opened) this.toggle(0, true);
  }

  /** A photo that the server reads and the browser does not (HEIC, for most) is shown as a plain
   * area with the boxes in it. */
  async showUndecoded() {
    if (await this.shown) return;
    this.frame.classList.add("undecoded");
    this.frame.append(
      html("p", { className: "small" }, "This browser cannot show the photo. The server has read it."),
    );
  }

  summary() {
    const { faces, labels, unit } = this.document;
    const found = faces.map((face, index) => {
      const said = words(face, labels, unit);
      return `face ${index + 1}: ${said.value} ${unit}, 80 % interval ${said.interval}`;
    });
    const number = faces.length === 1 ? "1 face" : `${faces.length} faces`;
    return `${this.name}: ${number}. ${found.join("; ")}.`;
  }

  addFace(face, index) {
    const { labels, unit, photo } = this.document;
    const said = words(face, labels, unit);
    const several = this.document.faces.length > 1;

    const box = this.box(face, photo, several ? `${index + 1}` : null, said);
    box.addEventListener("click", () => this.toggle(index, true));
    this.boxes.append(box);

    const panel = html("div", { className: "panel", id: `${this.id}-face-${index + 1}`, hidden: true });
    const button = html(
      "button",
      {
        type: "button",
        className: "face",
        attributes: { "aria-expanded": "false", "aria-controls": panel.id },
      },
      several ? badge(index + 1) : null,
      html("span", { className: "hidden" }, several ? `Face ${index + 1}: ` : "The face: "),
      html(
        "span",
        { className: "estimate" },
        html("span", { className: "value" }, said.value),
        html("span", { className: "unit" }, ` ${unit}`),
      ),
      html(
        "span",
        { className: "range" },
        html("span", { className: "hidden" }, "80 % interval "),
        said.interval,
        intervalBar(face, labels),
      ),
      html("span", { className: "chevron", attributes: { "aria-hidden": "true" } }),
    );
    button.addEventListener("click", () => this.toggle(index));
    for (const [name, on] of [["focus", true], ["blur", false], ["pointerenter", true], ["pointerleave", false]]) {
      button.addEventListener(name, () => box.classList.toggle("pointed", on));
    }
    this.faces.append(html("li", {}, button, panel));
    return { box, button, panel, face, filled: false };
  }

  /** The box on the photo. Its row below is what the keyboard reaches. */
  box(face, photo, number, said) {
    const [x0, y0, x1, y1] = face.box;
    const share = (value, whole) => Math.min(Math.max(value / whole, 0), 1);
    const left = share(x0, photo.width);
    const top = share(y0, photo.height);
    const right = share(x1, photo.width);
    const bottom = share(y1, photo.height);

    const tag = html(
      "span",
      { className: "tag" },
      number === null ? null : html("span", { className: "tag-number" }, number),
      html("span", { className: "tag-value" }, said.value),
      html("span", { className: "tag-range" }, said.interval),
    );
    const box = html("div", { className: "box", attributes: { "aria-hidden": "true" } }, tag);
    box.style.left = `${100 * left}%`;
    box.style.top = `${100 * top}%`;
    box.style.width = `${100 * (right - left)}%`;
    box.style.height = `${100 * (bottom - top)}%`;
    if (top < 0.1) box.classList.add(bottom > 0.9 ? "tag-inside" : "tag-below");
    if (left > 0.6) box.classList.add("tag-right");
    return box;
  }

  /** Opens or closes a face; `open` true only opens. */
  toggle(index, open = null) {
    const row = this.rows[index];
    const opened = open ?? row.panel.hidden;
    row.panel.hidden = !opened;
    row.button.setAttribute("aria-expanded", String(opened));
    row.box.classList.toggle("selected", opened);
    if (opened && !row.filled) {
      row.filled = true;
      this.fill(row, index);
    }
  }

  fill({ face, panel }, index) {
    const figure = html("figure", {});
    panel.append(figure, this.facts(face));
    const width = Math.min(Math.max(figure.clientWidth, CURVE_PX.least), CURVE_PX.most);
    figure.append(curve(face, this.document, width));
    const place = html("div", { className: "score" });
    panel.append(place);
    this.fillScoreMap(place, index);
  }

  facts(face) {
    const { labels, unit } = this.document;
    const said = words(face, labels, unit);
    const most = face.probabilities.indexOf(Math.max(...face.probabilities));
    const rows = [
      ["80 % interval", `${said.interval} ${unit}`],
      ["Standard deviation", `${fixed(face.std, 1)} ${unit}`],
      ["Most probable", `${fixed(labels.minimum + most * labels.step)} ${unit}`],
      ["Face confidence", percent(face.probability)],
    ];
    return html(
      "dl",
      { className: "facts" },
      ...rows.map(([name, value]) => html("div", {}, html("dt", {}, name), html("dd", {}, value))),
    );
  }

  async fillScoreMap(place, index) {
    const model = await this.model;
    if (!model.explain) {
      const why = model.explain_reason ? ` ${sentence(model.explain_reason)}` : "";
      place.append(html("p", { className: "small" }, `This server draws no score map.${why}`));
      return;
    }

    place.append(html("p", { className: "small busy" }, "Drawing where the model looked …"));
    try {
      this.explained ??= this.ask("predict?all_faces=true&explain=true&distribution=false");
      const face = (await this.explained).faces[index];
      const image = (await this.shown) ? this.image : null;
      place.replaceChildren(await scoreMap(face, image, this.document.photo));
    } catch (error) {
      this.explained = null;
      place.replaceChildren(html("p", { className: "small error" }, sentence(error.message)));
    }
  }

  addTools() {
    const text = JSON.stringify(this.document, null, 1);
    const link = html("a", {
      className: "text-link",
      href: URL.createObjectURL(new Blob([text], { type: "application/json" })),
      download: `${this.name.replace(/\.[^.]*$/, "")}.json`,
      textContent: "Save as JSON",
    });
    this.gone.signal.addEventListener("abort", () => URL.revokeObjectURL(link.href));
    this.tools.append(link);
  }
}

/** The number of a face, for the eye: its button's name says it too. */
function badge(number) {
  return html("span", { className: "badge", attributes: { "aria-hidden": "true" } }, `${number}`);
}
