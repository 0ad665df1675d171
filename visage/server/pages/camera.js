// Takes a photo with a camera of this device, where the browser and the person allow it.

const element = (id) => document.getElementById(id);

const REASONS = {
  NotAllowedError: "The browser was not allowed to use the camera.",
  NotFoundError: "This device has no camera.",
  NotReadableError: "The camera is in use by another program.",
};

let stream = null;
let facing = "user";
let onPhoto = null;
let listening = false;

/** Opens the dialog; `take(file)` gets the photo. */
export function openCamera(take) {
  onPhoto = take;
  if (!listening) listen();
  element("camera-dialog").showModal();
  start();
}

function listen() {
  listening = true;
  element("camera-take").addEventListener("click", shoot);
  element("camera-close").addEventListener("click", () => element("camera-dialog").close());
  element("camera-dialog").addEventListener("close", stop);
  element("camera-turn").addEventListener("click", () => {
    facing = facing === "user" ? "environment" : "user";
    stop();
    start();
  });
}

async function start() {
  const view = element("camera-view");
  element("camera-take").disabled = true;
  element("camera-state").textContent = "Waiting for the camera …";
  try {
    const wanted = { facingMode: facing, width: { ideal: 1280 }, height: { ideal: 960 } };
    const opened = await navigator.mediaDevices.getUserMedia({ video: wanted, audio: false });
    if (!element("camera-dialog").open) {
      opened.getTracks().forEach((track) => track.stop());
      return;
    }
    stream = opened;
    view.srcObject = stream;
    await view.play();
    element("camera-state").textContent = "";
    element("camera-take").disabled = false;
    const devices = await navigator.mediaDevices.enumerateDevices();
    element("camera-turn").hidden = devices.filter((each) => each.kind === "videoinput").length < 2;
  } catch (error) {
    element("camera-state").textContent = REASONS[error.name] ?? "The camera cannot be used.";
  }
}

function stop() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  element("camera-view").srcObject = null;
}

/** The present frame as a JPEG, not mirrored: the model averages both sides anyway. */
function shoot() {
  const view = element("camera-view");
  const frame = document.createElement("canvas");
  frame.width = view.videoWidth;
  frame.height = view.videoHeight;
  frame.getContext("2d").drawImage(view, 0, 0);
  frame.toBlob(
    (blob) => {
      element("camera-dialog").close();
      onPhoto(new File([blob], "camera.jpg", { type: "image/jpeg" }));
    },
    "image/jpeg",
    0.95,
  );
}
