// `import` declarations of a cell. A cell is no module, so each becomes what may stand in one: the modules are loaded before the
// cell begins, as those of a module are, and their names are variables.
//
// The cell is parsed, and nothing else in it is touched: what looks like an import in a string, a template or a comment is none.
// The parser is node's own, by which its prompt finds `await`: it knows what this node knows, and no package needs to be there.
// What it cannot parse stays as it is, for node to say what is wrong with it.

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
      whole.push(`${local.name} = await ${load}`);
    } else {
      const from = type === 'ImportDefaultSpecifier' ? 'default' : name(imported);
      wanted.push(from);
      parts.push(`${JSON.stringify(from)}: ${local.name}`);
    }
  }
  if (parts.length > 0) whole.push(`{${parts.join(', ')}} = await ${load}`);
  const keep = whole.length > 0 ? `var ${whole.join(', ')};` : `await ${load};`;
  return { load, from: declaration.source.value, wanted, keep };
}

// As TypeScript's compiler marks what it makes of a cell with imports.
const isMark = (node) => node.type === 'ExportNamedDeclaration' && !node.declaration && !node.source && node.specifiers.length === 0;

// The cell without its imports, and what is to be loaded before it runs.
function withoutImports(code) {
  // Whoever writes none shall not wait for the parser.
  if (!/\b(?:import|export)\b/.test(code)) return { code, loads: [] };
  let program;
  try {
    program = parse(code);
  } catch {
    return { code, loads: [] };
  }
  const found = program.body.filter((node) => node.type === 'ImportDeclaration');
  const loads = found.map(loading);
  let made = '';
  let at = 0;
  // Before the first statement that is no directive, on its line: places in the cell stay what they are, but for one line.
  const first = program.body.find((node) => node.directive === undefined);
  const keep = loads.map((one) => one.keep).join(' ');
  for (const node of program.body) {
    const isImport = node.type === 'ImportDeclaration';
    if (node === first || isImport || isMark(node)) {
      made += code.slice(at, node.start);
      at = node.start;
    }
    if (node === first && keep !== '') made += `${keep} `;
    if (isImport || isMark(node)) {
      // Its lines stay, and it still ends the statement before it.
      made += `;${code.slice(node.start, node.end).replace(/[^\n]/g, '')}`;
      at = node.end;
    }
  }
  return { code: made + code.slice(at), loads };
}

module.exports = { withoutImports };
