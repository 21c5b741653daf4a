"use strict";
// What report/pack.py packed: compressed arrays in base64, unpacked when they are looked at.

const element = (id) => document.getElementById(id);
const json = (id) => JSON.parse(element(id).textContent);

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

const ARRAYS = { uint8: Uint8Array, uint16: Uint16Array, int32: Int32Array, float32: Float32Array, float64: Float64Array };

async function unpack(text) {
  const buffer = await inflate(text);
  const size = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
  const arrays = {};
  let offset = Math.ceil((4 + size) / 8) * 8;
  for (const [name, [type, length]] of Object.entries(head.arrays)) {
    arrays[name] = new ARRAYS[type](buffer, offset, length);
    offset += Math.ceil(arrays[name].byteLength / 8) * 8;
  }
  return { facts: head.facts, arrays };
}
