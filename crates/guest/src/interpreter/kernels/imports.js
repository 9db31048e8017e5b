// `import` declarations of a cell. A cell is no module, so each becomes what may stand in one: the modules are loaded before the
// cell begins, as those of a module are, and their names are variables.
//
// The cell is parsed, and nothing else in it is touched: what looks like an import in a string, a template or a comment is none.
// The parser is node's own, by which its prompt finds `await`: it knows what this node knows, and no package needs to be there.
// What it cannot parse stays as it is, for node to say what is wrong with it.
//
// A name that node itself has (`setTimeout`, `crypto`, `process`) must not become a global variable: it would take node's own away
// from every library, or, where that cannot be written to, never come to be. A global `let` would be seen by libraries just the same.
// So what is imported by such a name has another in cells, from the import on: each identifier of that name is written so, be it a
// use or a declaration in some scope, so that they go on to mean each other.

'use strict';

const vm = require('vm');

let parser;
function parse(code) {
  if (parser === undefined) {
    const made = { exports: {} };
    const source = process.binding('natives')['internal/deps/acorn/acorn/dist/acorn'];
    vm.runInThisContext(`(function (exports, module) {${source}\n})`)(made.exports, made);
    parser = made.exports;
  }
  // Not as a module, which would be strict.
  return parser.parse(code, {
    ecmaVersion: 'latest', sourceType: 'script', allowHashBang: true, allowAwaitOutsideFunction: true,
    allowImportExportEverywhere: true,
  });
}

// What is there before any cell, and before node's prompt adds its own.
const OWN = new Set(Object.getOwnPropertyNames(globalThis));
// Those of them that cells have imported, and what they are called in cells.
const renamed = new Map();

function variable(local) {
  if (OWN.has(local)) renamed.set(local, `${local}$imported`);
  return renamed.get(local) ?? local;
}

const name = (node) => node.name ?? node.value;

// The options of `import()`: `with { type: 'json' }`.
function options(declaration) {
  const given = declaration.attributes ?? [];
  if (given.length === 0) return '';
  const pairs = given.map(({ key, value }) => `${JSON.stringify(name(key))}: ${JSON.stringify(value.value)}`);
  return `, {with: {${pairs.join(', ')}}}`;
}

// What loads a declaration's module, the names that it must have, and the statement that keeps them.
function loading(declaration) {
  const load = `import(${JSON.stringify(declaration.source.value)}${options(declaration)})`;
  const whole = [];
  const parts = [];
  const wanted = [];
  for (const { type, local, imported } of declaration.specifiers) {
    if (type === 'ImportNamespaceSpecifier') {
      whole.push(`${variable(local.name)} = await ${load}`);
    } else {
      const from = type === 'ImportDefaultSpecifier' ? 'default' : name(imported);
      wanted.push(from);
      parts.push(`${JSON.stringify(from)}: ${variable(local.name)}`);
    }
  }
  if (parts.length > 0) whole.push(`{${parts.join(', ')}} = await ${load}`);
  return { load, from: declaration.source.value, wanted, keep: whole.length > 0 ? `var ${whole.join(', ')};` : '' };
}

// As TypeScript's compiler marks what it makes of a cell with imports.
const isMark = (node) => node.type === 'ExportNamedDeclaration' && !node.declaration && !node.source && node.specifiers.length === 0;

// Which parts of a node are names of something else than a variable.
function isOther(node, part) {
  if (part === 'property' || part === 'key') return !node.computed;
  return part === 'label' || node.type === 'MetaProperty';
}

// Where identifiers are to be written otherwise.
function renames(node, edits) {
  if (node.type === 'Identifier' && renamed.has(node.name)) {
    edits.push({ start: node.start, end: node.end, text: renamed.get(node.name) });
  } else if (node.type === 'Property' && node.shorthand) {
    const { key, value } = node;
    if (renamed.has(key.name)) edits.push({ start: key.start, end: key.end, text: `${key.name}: ${renamed.get(key.name)}` });
    if (value.type === 'AssignmentPattern') renames(value.right, edits);
  } else {
    for (const [part, value] of Object.entries(node)) {
      if (isOther(node, part)) continue;
      for (const child of Array.isArray(value) ? value : [value]) {
        if (typeof child?.type === 'string') renames(child, edits);
      }
    }
  }
}

// The cell without its imports, and what is to be loaded before it runs.
function withoutImports(code) {
  // Whoever writes none shall not wait for the parser.
  if (!/\b(?:import|export)\b/.test(code) && ![...renamed.keys()].some((one) => code.includes(one))) return { code, loads: [] };
  let program;
  try {
    program = parse(code);
  } catch {
    return { code, loads: [] };
  }
  const loads = program.body.filter((node) => node.type === 'ImportDeclaration').map(loading);
  const edits = [];
  // Before the first statement that is no directive, on its line: places in the cell stay what they are, but for one line.
  const first = program.body.find((node) => node.directive === undefined);
  const keep = loads.map((one) => one.keep).filter((one) => one !== '').join(' ');
  if (keep !== '') edits.push({ start: first.start, end: first.start, text: `${keep} ` });
  for (const node of program.body) {
    if (node.type === 'ImportDeclaration' || isMark(node)) {
      // Its lines stay, and it still ends the statement before it.
      edits.push({ start: node.start, end: node.end, text: `;${code.slice(node.start, node.end).replace(/[^\n]/g, '')}` });
    } else if (renamed.size > 0) {
      renames(node, edits);
    }
  }
  let made = '';
  let at = 0;
  for (const { start, end, text } of edits.sort((one, other) => one.start - other.start)) {
    made += code.slice(at, start) + text;
    at = end;
  }
  return { code: made + code.slice(at), loads };
}

module.exports = { withoutImports };
