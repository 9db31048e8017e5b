// The official JavaScript SDK on what a sandbox reaches, holds and shares: outbound rules, secrets, identity tokens, volumes.
//
// `test_outside.py` runs this beside the packages, with a server that believes the hosts of a little internet, which OUTSIDE describes.

import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { after, before, describe, test } from 'node:test'

import {
  CommandExitError,
  Sandbox,
  SandboxError,
  Secret,
  SecretNotFoundError,
  Volume,
  VolumeError,
  VolumeNotFoundError,
  VolumePathNotFoundError,
} from 'e2b'

const outside = JSON.parse(process.env.OUTSIDE)
const LIFETIME_MS = 600_000
const WAIT_MS = 60_000
const PORT = 8000

const allDenied = { denyOut: ({ allTraffic }) => [allTraffic] }
const named = { ...allDenied, allowOut: ['allowed.test', 'other.test'] }

async function waitFor(probe, what) {
  const deadline = Date.now() + WAIT_MS
  for (;;) {
    const answer = await probe()
    if (answer) return answer
    assert.ok(Date.now() < deadline, `waited in vain for ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

/** Sandboxes that end with the test. */
async function withSandboxes(use) {
  const made = []
  try {
    await use(async (options) => {
      const sandbox = await Sandbox.create({ timeoutMs: LIFETIME_MS, ...options })
      made.push(sandbox)
      return sandbox
    })
  } finally {
    await Promise.all(made.map((sandbox) => sandbox.kill()))
  }
}

/** What a host outside says of a request, or curl's status for why there was none. */
async function ask(sandbox, url, ...options) {
  const curl = ['curl', '--silent', '--fail', '--connect-timeout', '5', '--max-time', '60', ...options, url]
  try {
    return JSON.parse((await sandbox.commands.run(curl.join(' '), { timeoutMs: 90_000 })).stdout)
  } catch (error) {
    if (error instanceof CommandExitError) return error.exitCode
    throw error
  }
}

async function reaches(sandbox, ...hosts) {
  const answers = []
  for (const host of hosts) answers.push((await ask(sandbox, `http://${host}/`)).at !== undefined)
  return answers
}

describe('outbound rules', () => {
  test('allow and deny addresses', async () => {
    const { allowed, other } = outside
    const table = [
      [{}, [true, true]],
      [{ allowInternetAccess: true }, [true, true]],
      [{ allowInternetAccess: false }, [false, false]],
      [{ network: allDenied }, [false, false]],
      [{ network: { ...allDenied, allowOut: [allowed] } }, [true, false]],
      [{ network: { ...allDenied, allowOut: [allowed, other] } }, [true, true]],
      [{ network: { denyOut: [other] } }, [true, false]],
    ]
    for (const [options, expected] of table) {
      await withSandboxes(async (create) => {
        assert.deepEqual(await reaches(await create(options), allowed, other), expected, JSON.stringify(options))
      })
    }
  })

  test('allow names, and are replaced as a whole while it runs', async () => {
    await withSandboxes(async (create) => {
      const sandbox = await create({ network: { ...named, allowOut: ['allowed.test', '*.wild.test'] } })
      const hosts = ['allowed.test', 'deep.wild.test', 'wild.test', 'other.test']
      assert.deepEqual(await reaches(sandbox, ...hosts), [true, true, false, false])
      await sandbox.updateNetwork({ ...named, allowOut: ['other.test'] })
      assert.deepEqual(await reaches(sandbox, ...hosts), [false, false, false, true])
      assert.deepEqual((await sandbox.getInfo()).network.allowOut, ['other.test'])
      await sandbox.updateNetwork({ denyOut: [outside.other] })
      assert.deepEqual(await reaches(sandbox, outside.allowed, outside.other), [true, false])
      await sandbox.updateNetwork({})
      assert.deepEqual(await reaches(sandbox, outside.allowed, outside.other), [true, true])
      await assert.rejects(sandbox.updateNetwork({ allowOut: ['allowed.test'] }), SandboxError)
      await assert.rejects(create({ network: { denyOut: ['allowed.test'] } }), SandboxError)
    })
  })

  test('send what is allowed through a proxy, whose password is not told', async () => {
    await withSandboxes(async (create) => {
      const { user: username, password, proxy } = outside
      const egressProxy = { address: `${proxy}:1080`, username, password }
      const sandbox = await create({ network: { egressProxy } })
      assert.equal((await ask(sandbox, `http://${outside.allowed}/`)).by, proxy)
      const told = (await sandbox.getInfo()).network.egressProxy
      assert.deepEqual(told, { address: `${proxy}:1080`, username })
      await sandbox.updateNetwork({ egressProxy: { ...egressProxy, password: 'wrong' } })
      assert.deepEqual(await reaches(sandbox, outside.allowed), [false])
      await sandbox.updateNetwork({})
      assert.equal((await sandbox.getInfo()).network?.egressProxy, undefined)
      assert.notEqual((await ask(sandbox, `http://${outside.allowed}/`)).by, proxy)
    })
  })
})

describe('traffic into a sandbox', () => {
  const program = `
import http.server
class Peer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        said = self.headers["Host"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)
http.server.HTTPServer(("", ${PORT}), Peer).serve_forever()
`

  async function serving(create, network) {
    const sandbox = await create({ network })
    await sandbox.files.write('/home/user/peer.py', program)
    await sandbox.commands.run('exec python3 /home/user/peer.py', { background: true, timeoutMs: 0 })
    await sandbox.commands.run(`until (: </dev/tcp/127.0.0.1/${PORT}) 2>/dev/null; do sleep 0.05; done`)
    const route = { 'E2b-Sandbox-Id': sandbox.sandboxId, 'E2b-Sandbox-Port': `${PORT}` }
    return [sandbox, (headers) => fetch(process.env.E2B_SANDBOX_URL, { headers: { ...route, ...headers } })]
  }

  test('wants the token of a private one', async () => {
    await withSandboxes(async (create) => {
      const [sandbox, get] = await serving(create, { allowPublicTraffic: false })
      assert.ok(sandbox.trafficAccessToken)
      assert.equal((await get({})).status, 403)
      assert.equal((await get({ 'e2b-traffic-access-token': 'wrong' })).status, 403)
      assert.equal((await get({ 'e2b-traffic-access-token': sandbox.trafficAccessToken })).status, 200)
    })
  })

  test('wants none of a public one, and comes under the host that was asked for', async () => {
    await withSandboxes(async (create) => {
      const [, get] = await serving(create, { allowPublicTraffic: true, maskRequestHost: 'custom-host.example.com:${PORT}' })
      const answer = await get({})
      assert.deepEqual([answer.status, await answer.text()], [200, `custom-host.example.com:${PORT}`])
    })
  })
})

describe('secrets', () => {
  const names = []
  const make = (word, value, options) => {
    names.push(`${word}-${randomUUID().slice(0, 12)}`)
    return Secret.create(names.at(-1), value, options)
  }

  after(() => Promise.all(names.map((name) => Secret.destroy(name))))

  test('are told without their values, renewed and found', async () => {
    const made = await make('told', 'sk-never-told', { metadata: { env: 'test' } })
    assert.match(made.secretId, /^sec_/)
    assert.deepEqual([made.version, made.metadata, made.value], [1, { env: 'test' }, undefined])
    assert.ok(made.createdAt instanceof Date && made.updatedAt instanceof Date)
    assert.equal((await Secret.getInfo(made.name)).secretId, made.secretId)
    assert.equal((await Secret.getInfo(made.secretId)).name, made.name)
    const renewed = await Secret.update(made.secretId, 'newer')
    assert.deepEqual([renewed.secretId, renewed.version], [made.secretId, 2])
  })

  test('are listed in pages and end', async () => {
    const made = await Promise.all(['a', 'b', 'c'].map((word) => make(word, word)))
    const seen = []
    const pages = Secret.list({ limit: 2 })
    while (pages.hasNext) {
      const page = await pages.nextItems()
      assert.ok(page.length <= 2)
      seen.push(...page.map((info) => info.name))
    }
    for (const { name } of made) assert.equal(seen.filter((each) => each === name).length, 1)
    assert.equal(await Secret.exists(made[0].name), true)
    assert.equal(await Secret.destroy(made[0].secretId), true)
    assert.equal(await Secret.destroy(made[0].secretId), false)
    assert.equal(await Secret.exists(made[0].name), false)
    await assert.rejects(Secret.getInfo(made[0].name), SecretNotFoundError)
    await assert.rejects(Secret.update(made[0].name, 'value'), SecretNotFoundError)
  })

  test('are put into requests to their host, and to no other', async () => {
    await withSandboxes(async (create) => {
      const secret = await make('filled', 'sk-outside-4711')
      const headers = { Authorization: `Bearer ${Secret.fill(secret.name)}`, 'X-Test-Token': 'static' }
      const rules = { 'allowed.test': [{ transform: { headers } }], 'other.test': [{ transform: null }] }
      const sandbox = await create({ network: { ...named, allowOut: ({ rules }) => [...rules.keys()], rules } })
      const said = await ask(sandbox, 'https://allowed.test/', '--header', "'Authorization: mine'")
      assert.deepEqual([said.at, said.headers.authorization, said.headers['x-test-token']], [outside.allowed, 'Bearer sk-outside-4711', 'static'])
      const other = await ask(sandbox, 'https://other.test/', '--insecure')
      assert.deepEqual([other.at, other.headers['x-test-token']], [outside.other, undefined])
      await Secret.update(secret.name, 'sk-outside-4712')
      assert.equal((await ask(sandbox, 'https://allowed.test/')).headers.authorization, 'Bearer sk-outside-4712')
      const environment = await sandbox.commands.run('env')
      assert.ok(!environment.stdout.includes('sk-outside'))
    })
  })

  test('that there are not refuse a create, and an update', async () => {
    const rules = { 'allowed.test': [{ transform: { headers: { Authorization: '${e2b.secrets.no-such-secret}' } } }] }
    await assert.rejects(Sandbox.create({ network: { ...named, rules } }), SandboxError)
    await withSandboxes(async (create) => {
      const sandbox = await create({ network: named })
      await assert.rejects(sandbox.updateNetwork({ ...named, rules }), SandboxError)
    })
  })

  test('of identity are tokens of this sandbox, one for each request', async () => {
    await withSandboxes(async (create) => {
      const token = Secret.iamToken({ audience: 'sts.example', tokenType: 'JWT-SVID' })
      const transform = ({ iam }) => ({ headers: { Authorization: `Bearer ${iam.tokens['aws.prod-1_x']}` } })
      const network = { ...named, rules: { 'allowed.test': [{ transform }] } }
      const sandbox = await create({ iam: { tokens: { 'aws.prod-1_x': token } }, network })
      const carried = []
      for (let n = 0; n < 2; n++) {
        carried.push((await ask(sandbox, 'https://allowed.test/')).headers.authorization.slice('Bearer '.length))
      }
      assert.notEqual(carried[0], carried[1])
      const claims = JSON.parse(Buffer.from(carried[0].split('.')[1], 'base64url').toString())
      assert.deepEqual([claims.aud, claims.sub], [['sts.example'], `spiffe://firkin.test/sandbox/${sandbox.sandboxId}`])
      // A change of the rules comes without `iam`, and finds the tokens of the create.
      await sandbox.updateNetwork({ ...named, rules: { 'other.test': [{ transform }] } })
      assert.match((await ask(sandbox, 'https://other.test/')).headers.authorization, /^Bearer ey/)
    })
  })
})

describe('volumes', () => {
  let volume

  before(async () => {
    volume = await Volume.create(`js-${randomUUID().slice(0, 12)}`)
  })

  after(async () => {
    assert.equal(await Volume.destroy(volume.volumeId), true)
  })

  test('are listed, connected to, and end', async () => {
    const made = await Volume.create(`js-${randomUUID().slice(0, 12)}`)
    assert.ok(made.token)
    assert.equal((await Volume.getInfo(made.volumeId)).name, made.name)
    assert.equal((await Volume.list()).filter((each) => each.volumeId === made.volumeId)[0].name, made.name)
    await made.writeFile('/by-one', 'seen by the other')
    assert.equal(await (await Volume.connect(made.volumeId)).readFile('/by-one'), 'seen by the other')
    assert.equal(await Volume.destroy(made.volumeId), true)
    assert.equal(await Volume.destroy(made.volumeId), false)
    await assert.rejects(Volume.getInfo(made.volumeId), VolumeNotFoundError)
  })

  test('take and give files in every form', async () => {
    const bytes = Uint8Array.from({ length: 70_000 }, (_, at) => at % 251)
    await volume.writeFile('/bytes', bytes.buffer)
    assert.deepEqual(await volume.readFile('/bytes', { format: 'bytes' }), bytes)
    await volume.writeFile('/blob', new Blob([bytes]))
    assert.equal((await volume.readFile('/blob', { format: 'blob' })).size, bytes.length)
    await volume.writeFile('/stream', new Blob([bytes]).stream())
    let streamed = 0
    for await (const chunk of await volume.readFile('/stream', { format: 'stream' })) streamed += chunk.length
    assert.equal(streamed, bytes.length)
    await volume.writeFile('/text', 'grüße', { uid: 1000, gid: 1000, mode: 0o644 })
    assert.equal(await volume.readFile('/text'), 'grüße')
    const info = await volume.getInfo('/text')
    assert.deepEqual([info.name, info.path, info.uid, info.gid, info.mode], ['text', '/text', 1000, 1000, 0o644])
    assert.ok(info.atime instanceof Date && info.mtime instanceof Date && info.ctime instanceof Date)
    const changed = await volume.updateMetadata('/text', { uid: 1001, gid: 1002, mode: 0o755 })
    assert.deepEqual([changed.uid, changed.gid, changed.mode], [1001, 1002, 0o755])
    await volume.writeFile('/text', 'next', { force: true })
    await assert.rejects(volume.writeFile('/text', 'third', { force: false }), VolumeError)
    assert.equal(await volume.readFile('/text'), 'next')
    await volume.writeFile('/empty', '')
    for (const format of ['text', 'bytes', 'blob']) {
      const empty = await volume.readFile('/empty', { format })
      assert.equal(empty.length ?? empty.size, 0, format)
    }
    await assert.rejects(volume.readFile('/none'), VolumePathNotFoundError)
    await assert.rejects(volume.readFile('/none', { format: 'stream' }), VolumePathNotFoundError)
    await assert.rejects(volume.updateMetadata('/none', { mode: 0o644 }), VolumePathNotFoundError)
  })

  test('have directories', async () => {
    await volume.makeDir('/a/b/c', { force: true })
    await assert.rejects(volume.makeDir('/a', { force: false }), VolumeError)
    await volume.writeFile('/a/file', 'x')
    const entries = (await volume.list('/a')).map((entry) => [entry.name, entry.type])
    assert.deepEqual(entries.sort(), [['b', 'directory'], ['file', 'file']])
    assert.ok((await volume.list('/')).some((entry) => entry.name === 'a'))
    await volume.remove('/a')
    assert.equal(await volume.exists('/a'), false)
    for (const call of ['list', 'remove', 'getInfo']) await assert.rejects(volume[call]('/a'), VolumePathNotFoundError)
  })

  test('are mounted in several sandboxes at once', async () => {
    await withSandboxes(async (create) => {
      const one = await create({ volumeMounts: { '/mnt/shared': volume } })
      const two = await create({ volumeMounts: { '/home/user/data': volume.name } })
      await one.commands.run('echo one > /mnt/shared/line && mv /mnt/shared/line /mnt/shared/moved')
      assert.equal((await two.commands.run('cat /home/user/data/moved')).stdout, 'one\n')
      await two.commands.run('echo two >> /home/user/data/moved')
      await waitFor(async () => (await one.commands.run('cat /mnt/shared/moved')).stdout === 'one\ntwo\n', 'what the other wrote')
      assert.equal(await volume.readFile('/moved'), 'one\ntwo\n')
      assert.deepEqual((await one.getInfo()).volumeMounts, [{ name: volume.name, path: '/mnt/shared' }])
    })
    await assert.rejects(Sandbox.create({ volumeMounts: { '/mnt/shared': 'no-such-volume' } }), SandboxError)
  })
})

test('the authority of the hosts outside is nobody that sandboxes believe', async () => {
  await withSandboxes(async (create) => {
    const sandbox = await create({})
    await sandbox.files.write('/home/user/authority.pem', await readFile(outside.authority, 'utf8'))
    assert.equal(await ask(sandbox, `https://${outside.allowed}/`), 60)
    assert.equal((await ask(sandbox, `https://${outside.allowed}/`, '--cacert', '/home/user/authority.pem')).at, outside.allowed)
  })
})
