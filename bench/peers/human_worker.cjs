// human (face detector, mesh and description, WebAssembly): a path a line -> {"age": years or null} a line.
// The first argument is the folder that holds node_modules.
const fs = require('fs');
const path = require('path');
const readline = require('readline');

const modules = path.join(path.resolve(process.argv[2]), 'node_modules');
const load = (name) => require(path.join(modules, name));
const jpeg = load('jpeg-js');
const wasm = load('@tensorflow/tfjs-backend-wasm');
const { Human } = load('@vladmandic/human/dist/human.node-wasm.js');

// human reads its weights with fetch, and node's fetch knows no files.
const { fetch: fetchFromHosts } = globalThis;
globalThis.fetch = async (url, options) => {
  const text = String(url?.url ?? url);
  if (!text.startsWith('file://')) return fetchFromHosts(url, options);
  const type = text.endsWith('.json') ? 'application/json' : 'application/octet-stream';
  return new Response(fs.readFileSync(new URL(text)), { headers: { 'content-type': type } });
};

async function main() {
  wasm.setThreadsCount(1);
  const human = new Human({
    backend: 'wasm',
    wasmPath: `file://${path.join(modules, '@tensorflow/tfjs-backend-wasm/dist')}/`,
    modelBasePath: `file://${path.join(modules, '@vladmandic/human/models')}/`,
    debug: false,
    cacheSensitivity: 0,
    face: { enabled: true, emotion: { enabled: false }, iris: { enabled: false }, description: { enabled: true } },
    body: { enabled: false }, hand: { enabled: false }, object: { enabled: false }, gesture: { enabled: false },
  });
  await human.load();

  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { data, width, height } = jpeg.decode(fs.readFileSync(line), { useTArray: true, formatAsRGBA: false });
    const photo = human.tf.tensor4d(data, [1, height, width, 3], 'float32');
    const { face } = await human.detect(photo);
    human.tf.dispose(photo);
    console.log(JSON.stringify({ age: face.length ? face[0].age ?? null : null }));
  }
}

main();
