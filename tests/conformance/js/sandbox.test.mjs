// The official JavaScript SDK against a running server: what it does differently from the Python one (chunked request bodies,
// streams, watchers, its own reading of errors) and what every program with it does first.
//
// `e2b` is found beside this file: `cargo xtask conformance` copies it to where npm has installed the packages.

import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'

import {
  BuildError,
  CommandExitError,
  FileNotFoundError,
  FileType,
  NotFoundError,
  Sandbox,
  SandboxNotFoundError,
  Template,
  TimeoutError,
} from 'e2b'

// Longer than the whole suite: a sandbox that ends early fails a test for the wrong reason.
const LIFETIME_MS = 600_000
// Bound of every wait for a level. Emulated guests are slow; nothing that works takes this long.
const WAIT_MS = 60_000

async function waitFor(probe, what) {
  const deadline = Date.now() + WAIT_MS
  for (;;) {
    const answer = await probe()
    if (answer) return answer
    assert.ok(Date.now() < deadline, `waited in vain for ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

describe('one sandbox', () => {
  let sandbox

  before(async () => {
    sandbox = await Sandbox.create({ timeoutMs: LIFETIME_MS, envs: { FROM_CREATE: 'create' }, metadata: { suite: 'js' } })
  })

  after(async () => {
    assert.equal(await sandbox.kill(), true)
  })

  test('is listed with its metadata', async () => {
    const listed = await Sandbox.list({ query: { metadata: { suite: 'js' } } }).nextItems()
    const ids = listed.map((info) => info.sandboxId)
    assert.ok(ids.includes(sandbox.sandboxId), `${sandbox.sandboxId} is not among ${ids}`)
    const info = await sandbox.getInfo()
    assert.deepEqual([info.metadata, info.state], [{ suite: 'js' }, 'running'])
  })

  test('runs a command as a user, in a directory, with variables', async () => {
    const script = 'id -un; pwd; echo $FROM_CREATE $FROM_RUN; echo wrong >&2'
    const result = await sandbox.commands.run(script, { user: 'root', cwd: '/tmp', envs: { FROM_RUN: 'run' } })
    assert.deepEqual([result.stdout, result.stderr, result.exitCode], ['root\n/tmp\ncreate run\n', 'wrong\n', 0])
  })

  test('a failing command is an error with its exit code', async () => {
    await assert.rejects(sandbox.commands.run('echo out; exit 3'), (error) => {
      assert.ok(error instanceof CommandExitError, String(error))
      assert.deepEqual([error.exitCode, error.stdout], [3, 'out\n'])
      return true
    })
  })

  test('a command that takes too long is ended', async () => {
    await assert.rejects(sandbox.commands.run('sleep 3600', { timeoutMs: 1500 }), TimeoutError)
    const left = await waitFor(async () => {
      const running = await sandbox.commands.list()
      return running.every((process) => !process.args.includes('sleep 3600')) && 'none'
    }, 'the end of the command')
    assert.equal(left, 'none')
  })

  test('output is streamed and input is taken until it is closed', async () => {
    const heard = []
    const handle = await sandbox.commands.run('cat', { background: true, stdin: true, onStdout: (text) => heard.push(text) })
    await sandbox.commands.sendStdin(handle.pid, 'first\n')
    await waitFor(() => heard.join('') === 'first\n', 'the echo of the first line')
    await handle.sendStdin(new TextEncoder().encode('zweite ü\n'))
    await handle.closeStdin()
    const result = await handle.wait()
    assert.deepEqual([result.stdout, result.exitCode], ['first\nzweite ü\n', 0])
  })

  test('a command is found again by its process id and killed', async () => {
    const handle = await sandbox.commands.run('sleep 3600', { background: true })
    await handle.disconnect()
    const again = await sandbox.commands.connect(handle.pid)
    assert.equal(await sandbox.commands.kill(handle.pid), true)
    await assert.rejects(again.wait(), CommandExitError)
    assert.equal(await sandbox.commands.kill(handle.pid), false)
  })

  test('files come back as text, bytes, blob and stream', async () => {
    const bytes = Uint8Array.from({ length: 70_000 }, (_, at) => at % 251)
    const written = await sandbox.files.write('js/deep/data', new Blob([bytes]))
    assert.deepEqual([written.path, written.name, written.type], ['/home/user/js/deep/data', 'data', 'file'])
    assert.deepEqual(await sandbox.files.read('js/deep/data', { format: 'bytes' }), bytes)
    const blob = await sandbox.files.read('js/deep/data', { format: 'blob' })
    assert.equal(blob.size, bytes.length)
    const stream = await sandbox.files.read('js/deep/data', { format: 'stream' })
    let streamed = 0
    for await (const chunk of stream) streamed += chunk.length
    assert.equal(streamed, bytes.length)
    await sandbox.files.write('js/text', 'grüße')
    assert.equal(await sandbox.files.read('js/text'), 'grüße')
  })

  test('streams and compressed bodies are uploaded', async () => {
    const text = 'line of text\n'.repeat(5000)
    await sandbox.files.write('js/streamed', new Blob([text]).stream())
    assert.equal(await sandbox.files.read('js/streamed'), text)
    await sandbox.files.write('js/zipped', text, { gzip: true })
    assert.equal(await sandbox.files.read('js/zipped', { gzip: true }), text)
  })

  test('directories are made, listed, renamed, removed', async () => {
    assert.equal(await sandbox.files.makeDir('js/dir/sub'), true)
    assert.equal(await sandbox.files.makeDir('js/dir/sub'), false)
    await sandbox.files.writeFiles([1, 2].map((n) => ({ path: `/home/user/js/dir/file${n}`, data: `${n}` })))
    const names = (await sandbox.files.list('js/dir')).map((entry) => [entry.name, entry.type])
    assert.deepEqual(names.sort(), [['file1', FileType.FILE], ['file2', FileType.FILE], ['sub', FileType.DIR]])
    const moved = await sandbox.files.rename('js/dir/file1', 'js/dir/moved')
    assert.equal(moved.path, '/home/user/js/dir/moved')
    await sandbox.files.remove('js/dir')
    assert.equal(await sandbox.files.exists('js/dir'), false)
    await assert.rejects(sandbox.files.read('js/dir/moved'), FileNotFoundError)
  })

  test('a watcher tells what changes', async () => {
    await sandbox.files.makeDir('js/watched')
    const seen = []
    const watcher = await sandbox.files.watchDir('js/watched', (event) => void seen.push(`${event.type} ${event.name}`))
    await sandbox.files.write('js/watched/new', 'x')
    await waitFor(() => seen.includes('write new'), 'the event of the write')
    await watcher.stop()
    assert.deepEqual(seen, ['create new', 'chmod new', 'write new'])
  })

  test('a signed URL needs no other credentials', async () => {
    await sandbox.files.write('js/signed', 'behind a signature')
    const url = await sandbox.downloadUrl('js/signed', { useSignatureExpiration: 600 })
    const response = await fetch(url)
    assert.deepEqual([response.status, await response.text()], [200, 'behind a signature'])
    assert.equal((await fetch(url.replace('signature=', 'signature=0'))).status, 401)
  })

  test('a terminal is typed into and resized', async () => {
    let screen = ''
    const decoder = new TextDecoder()
    const type = (text) => sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode(text))
    const terminal = await sandbox.pty.create({ cols: 80, rows: 24, timeoutMs: 0, onData: (data) => (screen += decoder.decode(data)) })
    await type('stty size\n')
    await waitFor(() => screen.includes('24 80'), 'the first size')
    await sandbox.pty.resize(terminal.pid, { cols: 100, rows: 30 })
    await type('stty size\n')
    await waitFor(() => screen.includes('30 100'), 'the second size')
    await type('exit\n')
    assert.equal((await terminal.wait()).exitCode, 0)
  })

  test('measures are numbers of this sandbox', async () => {
    const samples = await waitFor(async () => {
      const found = await sandbox.getMetrics()
      return found.length > 0 && found
    }, 'a first sample')
    assert.ok(samples[0].cpuCount >= 1 && samples[0].memTotal > 0 && samples[0].diskTotal > 0, JSON.stringify(samples[0]))
  })
})

describe('lives', () => {
  test('pause, connect, fork and snapshot keep memory', async () => {
    const sandbox = await Sandbox.create({ timeoutMs: LIFETIME_MS })
    const ended = [sandbox]
    let snapshot
    try {
      await sandbox.commands.run('echo kept > /dev/shm/word')
      const word = async (of) => (await of.commands.run('cat /dev/shm/word')).stdout.trim()
      assert.equal(await sandbox.pause(), true)
      assert.equal(await sandbox.pause(), false)
      assert.equal((await sandbox.getInfo()).state, 'paused')
      const again = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: LIFETIME_MS })
      assert.equal(await word(again), 'kept')
      const children = await again.fork({ count: 2, timeoutMs: LIFETIME_MS })
      ended.push(...children)
      assert.deepEqual(await Promise.all(children.map(word)), ['kept', 'kept'])
      snapshot = (await again.createSnapshot()).snapshotId
      const copy = await Sandbox.create(snapshot, { timeoutMs: LIFETIME_MS })
      ended.push(copy)
      assert.equal(await word(copy), 'kept')
    } finally {
      await Promise.all(ended.map((each) => each.kill()))
      if (snapshot) assert.equal(await Sandbox.deleteSnapshot(snapshot), true)
    }
  })

  test('what has ended is not found, and what was under way is told so', async () => {
    const sandbox = await Sandbox.create({ timeoutMs: LIFETIME_MS })
    const handle = await sandbox.commands.run('sleep 3600', { background: true, timeoutMs: 0 })
    const cut = assert.rejects(handle.wait(), /killed or reached its end of life/)
    assert.equal(await sandbox.kill(), true)
    await cut
    assert.equal(await sandbox.isRunning(), false)
    assert.equal(await sandbox.kill(), false)
    await assert.rejects(Sandbox.connect(sandbox.sandboxId), SandboxNotFoundError)
    await assert.rejects(Sandbox.create('no-such-template'), (error) => /not found/.test(error.message))
    await assert.rejects(Sandbox.getInfo('i00000000000000000000'), NotFoundError)
  })

  test('many at once', async () => {
    const sandboxes = await Promise.all(Array.from({ length: 3 }, () => Sandbox.create({ timeoutMs: LIFETIME_MS })))
    try {
      const names = await Promise.all(sandboxes.map(async (each) => (await each.commands.run('hostname')).stdout.trim()))
      assert.deepEqual(names, sandboxes.map((each) => each.sandboxId))
    } finally {
      await Promise.all(sandboxes.map((each) => each.kill()))
    }
  })
})

describe('templates', () => {
  // The shape of `base`, which a build on it then goes on from without a boot.
  const shape = { cpuCount: 1, memoryMB: 512 }
  const name = `js-${randomUUID()}`

  after(async () => {
    const headers = { 'X-API-Key': process.env.E2B_API_KEY }
    const answer = await fetch(`${process.env.E2B_API_URL}/templates/${name}`, { method: 'DELETE', headers })
    assert.equal(answer.status, 204)
  })

  test('are built of steps and files, and a step that fails is named', async () => {
    const context = await mkdtemp(join(tmpdir(), 'firkin-js-'))
    try {
      await writeFile(join(context, 'note'), 'from the context')
      const template = Template({ fileContextPath: context })
        .fromTemplate('base')
        .setEnvs({ FROM_BUILD: 'build' })
        .copy('note', 'kept')
        .runCmd('cat kept; whoami > made')
      const logs = []
      const built = await Template.build(template, name, { ...shape, onBuildLogs: (entry) => logs.push(entry.message) })
      assert.equal(await Template.exists(name), true)
      assert.ok(logs.includes('from the context'), logs.join('\n'))
      const sandbox = await Sandbox.create(name, { timeoutMs: LIFETIME_MS })
      try {
        assert.equal((await sandbox.getInfo()).templateId, built.templateId)
        const seen = await sandbox.commands.run('cat made kept; echo $FROM_BUILD')
        assert.equal(seen.stdout, 'user\nfrom the contextbuild\n')
      } finally {
        await sandbox.kill()
      }
      const failing = Template().fromTemplate('base').runCmd('exit 3')
      await assert.rejects(Template.build(failing, name, shape), (error) => {
        assert.ok(error instanceof BuildError, String(error))
        assert.match(error.message, /failed to run command 'exit 3': command failed: exit status 3/)
        return true
      })
    } finally {
      await rm(context, { recursive: true })
    }
  })
})
