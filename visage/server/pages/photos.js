// The page of photos: they come in by file, drop, paste or camera; each becomes a card.

import { openCamera } from "./camera.js";
import { html, read, sentence } from "./elements.js";
import { modelCard } from "./model.js";
import { PhotoCard } from "./photo_card.js";

// Requests of this page at once; the others wait, so that one page does not fill the server
const AT_ONCE = 2;
const QUESTIONS = {
  age: "How old does a face look?",
  attractiveness: "How attractive does a face look?",
};
const FAIR = {
  age:
    "An estimate says how old a face looks, not how old the person is. It must not decide by " +
    "itself what anybody may enter, buy or do.",
};

const element = (id) => document.getElementById(id);
const cards = [];
const waiting = [];
let running = 0;

const model = read("model").catch((error) => ({ failed: error.message }));

/** Reads out to screen readers what has changed. */
function announce(text) {
  const line = html("span", {}, `${text} `);
  element("status").append(line);
  while (element("status").children.length > 4) element("status").firstChild.remove();
}

function addPhotos(files) {
  const photos = [...files];
  if (photos.length === 0) return;

  const alone = photos.length === 1 && cards.length === 0;
  for (const file of photos) {
    const card = new PhotoCard(file, { model, announce, remove, opened: alone });
    cards.push(card);
    element("photos").append(card.element);
    waiting.push(card);
  }
  arrange();
  announce(photos.length === 1 ? `${photos[0].name} was added.` : `${photos.length} photos were added.`);
  work();
}

/** Starts the next requests. */
function work() {
  while (running < AT_ONCE && waiting.length > 0) {
    running += 1;
    waiting
      .shift()
      .predict()
      .finally(() => {
        running -= 1;
        work();
      });
  }
}

function remove(card) {
  const place = cards.indexOf(card);
  cards.splice(place, 1);
  const queued = waiting.indexOf(card);
  if (queued >= 0) waiting.splice(queued, 1);
  card.close();
  arrange();
  announce(`${card.name} was removed.`);

  const next = cards[Math.min(place, cards.length - 1)];
  if (next) next.focus();
  else element("files").focus();
}

function arrange() {
  const count = cards.length;
  element("results").hidden = count === 0;
  element("results-title").textContent = count === 1 ? "1 photo" : `${count} photos`;
  element("clear").hidden = count < 2;
  document.body.classList.toggle("has-photos", count > 0);
  element("photos").classList.toggle("several", count > 1);
}

function filesOf(transfer) {
  return [...(transfer?.files ?? [])].filter(
    // A type that the browser does not know is empty; the server says what it is
    (file) => file.type === "" || file.type.startsWith("image/"),
  );
}

function refuseDrop(transfer) {
  if ([...(transfer?.types ?? [])].length > 0) announce("This holds no photo.");
}

function listen() {
  const input = element("files");
  input.addEventListener("change", () => {
    addPhotos(input.files);
    input.value = "";
  });

  // Anywhere on the page: a photo that misses the frame would replace the page
  let depth = 0;
  const over = (inside) => element("drop").classList.toggle("over", inside);
  document.addEventListener("dragenter", () => over((depth += 1) > 0));
  document.addEventListener("dragleave", () => over((depth -= 1) > 0));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    over(false);
    const files = filesOf(event.dataTransfer);
    if (files.length === 0) refuseDrop(event.dataTransfer);
    addPhotos(files);
  });
  document.addEventListener("paste", (event) => {
    const files = filesOf(event.clipboardData);
    if (files.length === 0) return;
    event.preventDefault();
    addPhotos(files);
  });

  element("drop").addEventListener("submit", (event) => event.preventDefault());
  element("clear").addEventListener("click", () => [...cards].reverse().forEach(remove));
  element("sample").addEventListener("click", async () => {
    const answer = await fetch("pages/drawn-faces.jpg");
    addPhotos([new File([await answer.blob()], "drawn-faces.jpg", { type: "image/jpeg" })]);
  });

  if (navigator.mediaDevices?.getUserMedia) {
    element("camera").hidden = false;
    element("camera").addEventListener("click", () => openCamera((photo) => addPhotos([photo])));
  }
}

async function showModel() {
  const known = await model;
  const section = element("model");
  section.hidden = false;
  if (known.failed) {
    element("model-body").append(html("p", { className: "error" }, sentence(known.failed)));
    return;
  }
  element("question").textContent = QUESTIONS[known.quantity] ?? `What ${known.quantity} does a face show?`;
  if (FAIR[known.quantity]) element("fair").textContent = FAIR[known.quantity];
  element("model-body").append(modelCard(known));
}

listen();
showModel();
