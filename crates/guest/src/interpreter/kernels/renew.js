// Random numbers of a process that a snapshot holds: each of its clones has the same state to draw from, and node renews nothing.
// So what is drawn comes from here, and is renewed when the kernel is told that another life has begun.
//
// `Math.random` draws from a state of ours; a program that puts its own in its place has seeded it itself, and keeps it. What
// node's crypto draws comes from OpenSSL, which cannot be told: from the second life on it is mixed with the kernel's numbers.

'use strict';

const crypto = require('crypto');
const fs = require('fs');
const module_ = require('module');

const URANDOM = fs.openSync('/dev/urandom', 'r');

function fresh(count) {
  const bytes = Buffer.alloc(count);
  let done = 0;
  while (done < count) done += fs.readSync(URANDOM, bytes, done, count - done, null);
  return bytes;
}

// xoshiro128** by Blackman and Vigna: four words of 32 bits, not all of them zero.
const state = new Uint32Array(4);
function seed() {
  do state.set(new Uint32Array(fresh(16).buffer.slice(0, 16))); while (state.every((word) => word === 0));
}

function word() {
  const product = Math.imul(state[1], 5);
  const result = Math.imul((product << 7) | (product >>> 25), 9) >>> 0;
  const shifted = state[1] << 9;
  state[2] ^= state[0];
  state[3] ^= state[1];
  state[1] ^= state[2];
  state[0] ^= state[3];
  state[2] ^= shifted;
  state[3] = (state[3] << 11) | (state[3] >>> 21);
  return result;
}

let isClone = false;

// Mixes fresh bytes into a buffer or an array of numbers.
function mix(into) {
  if (!isClone) return into;
  const view = ArrayBuffer.isView(into)
    ? new Uint8Array(into.buffer, into.byteOffset, into.byteLength)
    : new Uint8Array(into);
  const bytes = fresh(view.length);
  for (let at = 0; at < view.length; at += 1) view[at] ^= bytes[at];
  return into;
}

// A number from 0 to below `count`, which is at most 2 ** 48.
function below(count) {
  const limit = 2 ** 48 - (2 ** 48 % count);
  for (;;) {
    const drawn = fresh(6).readUIntBE(0, 6);
    if (drawn < limit) return drawn % count;
  }
}

function uuid() {
  const bytes = fresh(16);
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = bytes.toString('hex');
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-');
}

// Puts a function in the place of `object[name]` that gives what `change(its arguments)` makes of what that gives, to whomever it
// is given. The original still says what is wrong with its arguments.
function wrap(object, name, change) {
  const original = object[name];
  const put = {
    [name](...given) {
      const changed = change(given);
      const callback = given[given.length - 1];
      if (typeof callback === 'function') {
        const told = (error, value) => (error ? callback(error) : callback(error, changed(value)));
        return original.call(this, ...given.slice(0, -1), told);
      }
      return changed(original.apply(this, given));
    },
  }[name];
  Object.defineProperty(put, 'length', { value: original.length, configurable: true });
  const { enumerable } = Object.getOwnPropertyDescriptor(object, name);
  Object.defineProperty(object, name, { value: put, writable: true, enumerable, configurable: true });
}

// A part of a buffer, as `randomFill(buffer, offset, size)` names it: in elements of it.
function part(buffer, offset = 0, size = undefined) {
  const each = buffer.BYTES_PER_ELEMENT ?? 1;
  const start = (buffer.byteOffset ?? 0) + offset * each;
  const bytes = size === undefined ? buffer.byteLength - offset * each : size * each;
  return new Uint8Array(buffer.buffer ?? buffer, start, bytes);
}

function install() {
  seed();
  const random = { random: () => ((word() >>> 5) * 2 ** 26 + (word() >>> 6)) / 2 ** 53 }.random;
  Object.defineProperty(Math, 'random', { value: random, writable: true, enumerable: false, configurable: true });
  wrap(crypto, 'randomBytes', () => mix);
  for (const name of ['randomFill', 'randomFillSync']) {
    wrap(crypto, name, (given) => (buffer) => {
      const [offset, size] = given.slice(1).filter((one) => typeof one !== 'function');
      mix(part(buffer, offset, size));
      return buffer;
    });
  }
  wrap(crypto, 'randomInt', ([low, high]) => (drawn) => {
    if (!isClone) return drawn;
    const [from, to] = typeof high === 'number' ? [low, high] : [0, low];
    return from + (drawn - from + below(to - from)) % (to - from);
  });
  wrap(crypto, 'randomUUID', () => (drawn) => (isClone ? uuid() : drawn));
  const web = Object.getPrototypeOf(crypto.webcrypto);
  wrap(web, 'getRandomValues', () => mix);
  wrap(web, 'randomUUID', () => (drawn) => (isClone ? uuid() : drawn));
  // What is imported is what is required.
  module_.syncBuiltinESMExports();
}

// Another life has begun.
function renew() {
  seed();
  isClone = true;
}

module.exports = { install, renew, state };
