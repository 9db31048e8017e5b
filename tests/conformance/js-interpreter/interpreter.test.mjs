// The code interpreter's official JavaScript SDK against a running server: what it does differently from the Python one (its own
// reader of lines, its own time limits) and what every program with it does first.
//
// `@e2b/code-interpreter` is found beside this file: `cargo xtask conformance` copies it to where npm has installed the packages.

import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'

import { Sandbox } from '@e2b/code-interpreter'

// Longer than the whole suite: a sandbox that ends early fails a test for the wrong reason.
const LIFETIME_MS = 600_000
// Parts of the code interpreter that the server's template lacks: `firkin template build --without`.
const WITHOUT_PARTS = (process.env.WITHOUT_PARTS ?? '').split(',')
// Emulated guests start Java's compiler in their own time.
const CELL_MS = 240_000

describe('one sandbox', () => {
  let sandbox

  before(async () => {
    sandbox = await Sandbox.create({ timeoutMs: LIFETIME_MS, envs: { FROM_CREATE: 'create' } })
  })

  after(async () => {
    assert.equal(await sandbox.kill(), true)
  })

  const run = (code, options = {}) => sandbox.runCode(code, { timeoutMs: CELL_MS, requestTimeoutMs: CELL_MS, ...options })

  test('cells share variables and are counted', async () => {
    const first = await run('shared = 41')
    const second = await run('shared + 1')
    assert.equal(second.text, '42')
    assert.equal(second.executionCount, first.executionCount + 1)
  })

  test('output arrives at callbacks and in the logs', async () => {
    const seen = []
    const execution = await run("import sys; print('out'); print('err', file=sys.stderr); 7", {
      onStdout: (message) => seen.push(message.line),
      onStderr: (message) => seen.push(message.line),
      onResult: (result) => seen.push(result.text),
    })
    assert.deepEqual(seen.sort(), ['7', 'err\n', 'out\n'])
    assert.deepEqual([execution.logs.stdout, execution.logs.stderr], [['out\n'], ['err\n']])
  })

  test('a figure is a picture and a chart, a table is data', async () => {
    const code = "import matplotlib.pyplot as plt\nplt.bar(['a', 'b'], [1, 2])\nplt.title('Title')\nplt.show()"
    const [figure] = (await run(code)).results
    assert.ok(figure.png.startsWith('iVBOR'))
    assert.deepEqual([figure.chart.type, figure.chart.title], ['bar', 'Title'])
    const [table] = (await run("import pandas; pandas.DataFrame({'n': [1, 2]})")).results
    assert.deepEqual(table.data, { n: [1, 2] })
  })

  test('an error has its name and traceback', async () => {
    const { error } = await run('1 / 0')
    assert.deepEqual([error.name, error.value], ['ZeroDivisionError', 'division by zero'])
    assert.ok(error.traceback.includes('ZeroDivisionError'))
  })

  for (const [language, code] of [
    ['js', 'const made = await Promise.resolve(5); console.log(made)'],
    ['ts', 'const made: number = 5; console.log(made)'],
    ['bash', 'made=5; echo $made'],
    ['r', 'cat(2 + 3, "\\n", sep = "")'],
    ['java', 'int made = 5; System.out.println(made)'],
  ]) {
    const skip = WITHOUT_PARTS.includes(language) && `this template was built without ${language}`
    test(`${language} has a kernel`, { skip }, async () => {
      const execution = await run(code, { language })
      assert.equal(execution.error, undefined)
      assert.equal(execution.logs.stdout.join(''), '5\n')
    })
  }

  test('variables of the sandbox and of one cell', async () => {
    const ask = "import os; print(os.environ.get('FROM_CREATE'), os.environ.get('OF_CELL'))"
    assert.deepEqual((await run(ask, { envs: { OF_CELL: 'cell' } })).logs.stdout, ['create cell\n'])
    assert.deepEqual((await run(ask)).logs.stdout, ['create None\n'])
  })

  test('contexts keep to themselves', async () => {
    const context = await sandbox.createCodeContext({ cwd: '/tmp', requestTimeoutMs: CELL_MS })
    assert.deepEqual((await run('import os; print(os.getcwd())', { context })).logs.stdout, ['/tmp\n'])
    await run('only_here = 1', { context })
    assert.equal((await run('only_here')).error.name, 'NameError')
    await sandbox.restartCodeContext(context.id, { requestTimeoutMs: CELL_MS })
    assert.equal((await run('only_here', { context })).error.name, 'NameError')
    await sandbox.removeCodeContext(context.id)
    const left = await sandbox.listCodeContexts()
    assert.ok(!left.some((one) => one.id === context.id))
  })

  test('a client that gives up interrupts its cell', async () => {
    await run("kept = 'kept'")
    await assert.rejects(run('import time; time.sleep(1000)', { timeoutMs: 1000 }))
    assert.deepEqual((await run('print(kept)')).logs.stdout, ['kept\n'])
  })
})
