// Where the model looked: the face as the model sees it, and the same with the score map over it.

import { html } from "./elements.js";

const SIDE = 224;

function canvas() {
  const scale = Math.min(window.devicePixelRatio || 1, 2);
  const drawing = html("canvas", { width: SIDE * scale, height: SIDE * scale });
  return drawing;
}

async function picture(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  return image;
}

/** Draws the part of the photo between the corners of the model's crop. The browser's picture may
 * be smaller or larger than the photo of which the corners are pixels. */
function drawFace(drawing, image, photo, corners) {
  const [[ax, ay], [bx, by], , [dx, dy]] = corners;
  const context = drawing.getContext("2d");
  const side = drawing.width;
  // The crop's axes as columns, and their inverse: a similarity, so one length will do
  const length = (bx - ax) ** 2 + (by - ay) ** 2;
  const [ux, uy] = [((bx - ax) * side) / length, ((by - ay) * side) / length];
  const [vx, vy] = [((dx - ax) * side) / length, ((dy - ay) * side) / length];
  context.setTransform(ux, vx, uy, vy, -(ux * ax + uy * ay), -(vx * ax + vy * ay));
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, photo.width, photo.height);
  context.resetTransform();
}

/** A face of a document with `explain` and the photo's picture (null where the browser cannot show
 * it) -> a figure. */
export async function scoreMap(face, image, photo) {
  const map = await picture(face.score_map);
  const pairs = [];
  if (image !== null) {
    const plain = canvas();
    drawFace(plain, image, photo, face.score_map_corners);
    plain.setAttribute("role", "img");
    plain.setAttribute("aria-label", "The face as the model sees it");
    pairs.push(plain);
  }

  const mapped = canvas();
  const context = mapped.getContext("2d");
  if (image !== null) {
    context.filter = "grayscale(1)";
    drawFace(mapped, image, photo, face.score_map_corners);
    context.filter = "none";
  }
  context.imageSmoothingQuality = "high";
  context.drawImage(map, 0, 0, mapped.width, mapped.height);
  mapped.setAttribute("role", "img");
  mapped.setAttribute("aria-label", "The score map over the face");
  pairs.push(mapped);

  return html(
    "figure",
    { className: "score-figure" },
    html("div", { className: "score-pair" }, ...pairs),
    html(
      "figcaption",
      { className: "small" },
      "The face as the model sees it, and the score map over it: bright places count most for " +
        "the estimate. Only differences within one map mean something.",
    ),
  );
}
