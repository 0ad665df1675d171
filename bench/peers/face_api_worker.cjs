// face-api.js (its small detector and landmarks, WebAssembly): a path a line -> {"age": years or null} a line.
// The first argument is the folder that holds node_modules.
const fs = require('fs');
const path = require('path');
const readline = require('readline');

const modules = path.join(path.resolve(process.argv[2]), 'node_modules');
const load = (name) => require(path.join(modules, name));
const jpeg = load('jpeg-js');
const tf = load('@tensorflow/tfjs');
const wasm = load('@tensorflow/tfjs-backend-wasm');
const faceapi = load('@vladmandic/face-api/dist/face-api.node-wasm.js');

async function main() {
  wasm.setWasmPaths(path.join(modules, '@tensorflow/tfjs-backend-wasm/dist/'));
  wasm.setThreadsCount(1);
  await tf.setBackend('wasm');
  await tf.ready();
  const weights = path.join(modules, '@vladmandic/face-api/model');
  await faceapi.nets.tinyFaceDetector.loadFromDisk(weights);
  await faceapi.nets.faceLandmark68TinyNet.loadFromDisk(weights);
  await faceapi.nets.ageGenderNet.loadFromDisk(weights);
  const options = new faceapi.TinyFaceDetectorOptions();

  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { data, width, height } = jpeg.decode(fs.readFileSync(line), { useTArray: true, formatAsRGBA: false });
    const photo = tf.tensor3d(data, [height, width, 3], 'int32');
    const face = await faceapi.detectSingleFace(photo, options).withFaceLandmarks(true).withAgeAndGender();
    tf.dispose(photo);
    console.log(JSON.stringify({ age: face ? face.age : null }));
  }
}

main();
