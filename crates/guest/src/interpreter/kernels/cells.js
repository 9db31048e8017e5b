// Runs cells of JavaScript, or of TypeScript with its types removed, as node's own prompt does: declarations stay, `await`
// works at the top level, the value of the last expression is the result.
//
//     node cells.js <descriptor of cells> <descriptor of events> <javascript | typescript>
//     node cells.js keep-code

'use strict';

const fs = require('fs');
const module_ = require('module');
const net = require('net');
const path = require('path');
const readline = require('readline');
const repl = require('repl');
const stream = require('stream');
const util = require('util');
const vm = require('vm');

const { withoutImports } = require('./imports.js');
const renewal = require('./renew.js');

// The compiler is ten megabytes of text: its code, as node makes it, is kept beside the template's other files.
const CODE = '/var/lib/firkin/typescript.code';

function loadTypescript() {
  const file = module_.createRequire(path.join(process.cwd(), 'cell.js')).resolve('typescript');
  const cachedData = fs.existsSync(CODE) ? fs.readFileSync(CODE) : undefined;
  // Code of another compiler or node is rejected, and then made as if there were none.
  const script = new vm.Script(module_.wrap(fs.readFileSync(file, 'utf8')), { filename: file, cachedData });
  const made = { exports: {} };
  script.runInThisContext().call(made.exports, made.exports, module_.createRequire(file), made, file, path.dirname(file));
  return { exports: made.exports, script };
}

if (process.argv[2] === 'keep-code') {
  const { exports: compiler, script } = loadTypescript();
  // What a cell uses is in it too.
  compiler.transpileModule('const a: number = 1; interface B { c: string }', { compilerOptions: { target: 'ES2022' } });
  fs.mkdirSync(path.dirname(CODE), { recursive: true });
  fs.writeFileSync(CODE, script.createCachedData());
  process.exit(0);
}

const [cells, events, language] = [Number(process.argv[2]), Number(process.argv[3]), process.argv[4]];
process.argv.length = 1;

// Deeper values are cut by inspect itself; longer texts than this are no longer for reading.
const SHOWN = { depth: 4, maxArrayLength: 1000, maxStringLength: 1 << 20 };

const pause = new Int32Array(new SharedArrayBuffer(4));
const wait = (milliseconds) => Atomics.wait(pause, 0, 0, milliseconds);

function write(descriptor, data) {
  for (let rest = data; rest.length > 0; ) {
    try {
      rest = rest.subarray(fs.writeSync(descriptor, rest));
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error;
      wait(1);
    }
  }
}

function tell(event) {
  write(events, Buffer.from(JSON.stringify(event) + '\n'));
}

// Node's own streams remember that they are writing: a cell that is interrupted at that moment would leave them waiting for ever,
// and nothing would be printed again. These remember nothing.
for (const output of [process.stdout, process.stderr]) {
  output.write = (chunk, encoding, written) => {
    if (typeof encoding === 'function') [encoding, written] = [undefined, encoding];
    const { buffer, byteOffset, byteLength } = typeof chunk === 'string' ? Buffer.from(chunk, encoding) : chunk;
    write(output.fd, Buffer.from(buffer, byteOffset, byteLength));
    if (written) process.nextTick(written);
    return true;
  };
}

renewal.install();
const silent = new stream.PassThrough();
silent.resume();
const prompt = repl.start({ prompt: '', input: new stream.PassThrough(), output: silent, terminal: false, useGlobal: true,
  ignoreUndefined: true, breakEvalOnSigint: true });
// What is required is looked for where the cell works, as node's prompt does.
global.require = module_.createRequire(path.join(process.cwd(), 'cell.js'));
// Node's watchdog, a thread, ends what computes. Started and stopped with each cell, as node does it, it loses an interrupt that
// comes while it stops and then ends some later cell for it, so it stays for the kernel's life. And it may look at an interrupt
// only after the cell that was meant: so each is told on the way of the cells too, ahead of the next one, and nothing goes on
// before the watchdog sleeps again. That word is also what ends a cell that waits and does not compute.
const threads = () => fs.readdirSync('/proc/self/task');
const watchdog = process.binding('contextify');
const others = new Set(threads());
watchdog.startSigintWatchdog();
const watching = threads().filter((id) => !others.has(id));
const SETTLES_MS = 1000;
function settle() {
  const sleeps = (id) => fs.readFileSync(`/proc/self/task/${id}/stat`, 'latin1').replace(/.*\) /s, '').startsWith('S');
  const until = Date.now() + SETTLES_MS;
  while (!watching.every(sleeps) && Date.now() < until) wait(1);
  // What it noticed while nothing computed is remembered until it stops, or what was started within it stops.
  watchdog.startSigintWatchdog();
  watchdog.stopSigintWatchdog();
}
let interrupted = 0;
const interruption = () => new Error('Script execution was interrupted by `SIGINT`');
function interrupt(number) {
  settle();
  interrupted = number;
  if (running === number) refuse?.(interruption());
}
// The prompt's own listener closes it at the second interrupt.
prompt.removeAllListeners('SIGINT');
prompt.removeAllListeners('exit');

// The cell that runs, and who is told of an error that it throws, or that comes of what a cell has left behind.
let running = null;
let refuse = null;
function unexpected(error) {
  if (refuse) refuse(error);
  else process.stderr.write(`Uncaught ${util.inspect(error)}\n`);
}
process.on('uncaughtException', unexpected);
prompt._domain?.removeAllListeners('error');
prompt._domain?.on('error', unexpected);

let typescript;
function withoutTypes(code) {
  typescript ??= loadTypescript().exports;
  const options = { target: 'ES2022', module: 'ESNext', isolatedModules: true, importsNotUsedAsValues: 'preserve',
    preserveValueImports: true };
  const made = typescript.transpileModule(code, { compilerOptions: options, reportDiagnostics: true });
  const wrong = (made.diagnostics ?? []).find((one) => one.category === typescript.DiagnosticCategory.Error);
  if (wrong) {
    throw new SyntaxError(typescript.flattenDiagnosticMessageText(wrong.messageText, '\n'));
  }
  return made.outputText;
}

function evaluate(code) {
  return new Promise((resolve, reject) => {
    refuse = reject;
    if (running === interrupted) throw interruption();
    const done = (error, value) => (error ? reject(error) : resolve(value));
    prompt.eval(code.endsWith('\n') ? code : code + '\n', prompt.context, 'cell.js', done);
  });
}

// The modules of a cell's imports, loaded as the cell would load them; each has what is wanted of it.
async function load({ load: loading, from, wanted }) {
  const module = await evaluate(`await ${loading}`);
  const missing = wanted.find((name) => !(name in module));
  if (missing !== undefined) throw new SyntaxError(`The requested module '${from}' does not provide an export named '${missing}'`);
}

function failed(error) {
  // Whoever wrote an unfinished statement is told what node says, not that more lines are wanted.
  const cause = error instanceof repl.Recoverable ? error.err : error;
  if (!util.types.isNativeError(cause)) {
    return { type: 'error', name: 'Error', value: String(cause), traceback: `Uncaught ${util.inspect(cause)}` };
  }
  return { type: 'error', name: cause.name, value: cause.message, traceback: String(cause.stack ?? cause) };
}

async function cell(code, number) {
  running = number;
  try {
    const { code: ready, loads } = withoutImports(language === 'typescript' ? withoutTypes(code) : code);
    for (const one of loads) await load(one);
    const value = await evaluate(ready);
    if (value !== undefined) tell({ type: 'result', is_main_result: true, text: util.inspect(value, SHOWN) });
  } catch (error) {
    tell(failed(error));
  } finally {
    running = refuse = null;
  }
  tell({ type: 'done' });
}

let queue = Promise.resolve();
// Not a stream of a file: its reads block a thread that node waits for when a cell ends the process.
readline.createInterface({ input: new net.Socket({ fd: cells, readable: true, writable: false }) }).on('line', (line) => {
  const message = JSON.parse(line);
  if (message.interrupt !== undefined) {
    interrupt(message.interrupt);
    return;
  }
  queue = queue.then(() => {
    if (message.code !== undefined) return cell(message.code, message.cell);
    if (message.renew) return renewal.renew();
    if (message.value === null) delete process.env[message.variable];
    else process.env[message.variable] = message.value;
    return undefined;
  });
}).on('close', () => process.exit(0));
tell({ type: 'ready' });
